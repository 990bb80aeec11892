/**
 * Exports for servers with threads: `disk`, `other` and `more` are files of a directory, each of which one thread alone may have open;
 * `read` is the file `disk` for reading, which every thread may have. How often each was opened is kept in the directory.
 */
import { appendFileSync, closeSync, openSync } from 'node:fs'
import { threadId } from 'node:worker_threads'
import { VarveError } from '@varve/images/errors.ts'
import type { ExportNames } from '@varve/blockserver/nbd/export.ts'
import { FileDevice } from '@varve/images/device/file-device.ts'
import { tryLock } from '@varve/images/native/libc.ts'
import type { OpenExports, OpenNames } from '@varve/blockserver/nbd/server-thread.ts'

const NAMES = ['disk', 'other', 'more', 'read']

const names: ExportNames = {
  list: async () => NAMES.map((name) => ({ name, description: `the disk ${name}` })),
  canonicalName(name) {
    if (!NAMES.includes(name)) throw new VarveError('EXPORT_NOT_FOUND', `no export '${name}'`)
    return name
  },
}

export const openNames: OpenNames = async () => ({ source: names, [Symbol.asyncDispose]: async () => {} })

export const openExports: OpenExports = async (data) => {
  const { directory } = data as { directory: string }
  return {
    source: {
      ...names,
      exclusive: (name) => name !== 'read',
      open: async (name) => {
        const description = `the disk ${name}`
        appendFileSync(`${directory}/opened`, `${name} ${threadId}\n`)
        if (name === 'read') return { name, description, device: FileDevice.open({ path: `${directory}/disk`, readOnly: true }) }
        const lockFd = openSync(`${directory}/${name}.lock`, 'a')
        if (!tryLock(lockFd)) throw new Error('another thread has the disk')
        const device = FileDevice.open({ path: `${directory}/${name}` })
        const close = async () => {
          await device[Symbol.asyncDispose]()
          closeSync(lockFd)
        }
        return { name, description, device, close }
      },
    },
    [Symbol.asyncDispose]: async () => appendFileSync(`${directory}/opened`, `ended ${threadId}\n`),
  }
}
