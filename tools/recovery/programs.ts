/**
 * Programs of this machine in a root directory of their own, with the shared libraries that they load.
 */
import { copyFileSync, mkdirSync } from 'node:fs'
import path from 'node:path'
import { run } from './debian-packages.ts'

/** Shared libraries that a program or a library loads, and their loader. */
export function libraries(program: string): string[] {
  return [...run('ldd', [program]).matchAll(/(\/\S+) \(0x/g)].map((match) => match[1])
}

/** Copies files to the same paths below `root`. */
export function copyInto(root: string, files: Iterable<string>): void {
  for (const file of files) {
    mkdirSync(path.dirname(path.join(root, file)), { recursive: true })
    copyFileSync(file, path.join(root, file))
  }
}

/** Copies programs, by absolute path, and what they load. */
export function copyPrograms(root: string, programs: readonly string[]): void {
  for (const program of programs) copyInto(root, [program, ...libraries(program)])
}
