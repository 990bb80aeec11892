/**
 * The judge of two directories: whether the second is the first again, as the kernel shows both. It knows nothing of Varve.
 */
import { spawnSync } from 'node:child_process'
import path from 'node:path'

export interface Judgement {
  /** In words, at most 50. */
  differences: string[]
  /** What was compared. */
  entries: number
  /** By their letter in `ls -l`. */
  kinds: Record<string, number>
  xattrs: number
  /** Content that was hashed, bytes. */
  dataBytes: number
  /** Runs of data in all files. */
  dataRuns: number
}

/** Compares everything but ctime, atime and sizes of directories; `lost+found` may be in the root of the second. */
export function judge(source: string, image: string): Judgement {
  const script = path.join(import.meta.dirname, 'torture-judge.py')
  const { status, stdout, stderr } = spawnSync('/usr/bin/python3', [script, source, image], { encoding: 'utf8', maxBuffer: 1 << 24 })
  if (status !== 0) throw new Error(`${script} ended with ${status}: ${stderr}`)
  return JSON.parse(stdout) as Judgement
}

/** What e2fsck would fix, optimize or remark; nothing if the filesystem is as it should be. @param device or file that holds ext4 */
export function remarksOfFsck(device: string): string[] {
  const { status, stdout, stderr } = spawnSync('e2fsck', ['-fn', device], { encoding: 'utf8', maxBuffer: 1 << 28 })
  const remarks = stdout.split('\n').filter((line) => line !== '' && !/^Pass \d: |^\w+: \d+\/\d+ files /.test(line))
  return status === 0 ? remarks.slice(0, 20) : [`exit status ${status}`, ...remarks.slice(0, 20), stderr]
}
