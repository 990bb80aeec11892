/**
 * Directories for the images of a test file, removed when it is done.
 */
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after } from 'node:test'
import { FileDevice } from '@varve/images/device/file-device.ts'

/** @param name of the tests @returns makes a directory, and gives its path */
export function imageDirectories(name: string): () => string {
  const root = mkdtempSync(join(tmpdir(), `varve-${name}-`))
  after(() => rmSync(root, { recursive: true }))
  let count = 0
  return () => {
    const directory = join(root, String(count++))
    mkdirSync(directory)
    return directory
  }
}

export function openFile(path: string): FileDevice {
  return FileDevice.open({ path, readOnly: true })
}
