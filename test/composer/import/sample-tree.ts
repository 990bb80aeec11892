/**
 * Sample trees on disk: random ones from a seed, and one with everything that is hard.
 */
import { execFileSync } from 'node:child_process'
import { closeSync, ftruncateSync, linkSync, mkdirSync, openSync, symlinkSync, writeFileSync, writeSync, chmodSync, lchownSync, lutimesSync } from 'node:fs'
import { createServer } from 'node:net'
import type { Random } from '../../random.ts'

export interface SampleOptions {
  entries: number
  /** What the receiving format can hold. */
  sockets?: boolean
  xattrs?: boolean
  holes?: boolean
  nanoseconds?: boolean
  rawNames?: boolean
  /** Times before 1970 and after 2242 too. */
  farTimes?: boolean
  largeIds?: boolean
  /** Paths and targets of less than a hundred bytes, most likely. */
  shortNames?: boolean
}

/** Fills an empty directory with random entries. */
export function makeRandomTree(root: string, random: Random, options: SampleOptions): void {
  const directories = [root]
  const files: string[] = []
  const all = new Set<string>()
  // Run at the end in one go.
  const special: string[] = []
  const early: string[] = []
  for (let entry = 0; entry < options.entries; entry++) {
    const path = `${random.pick(directories)}/${name(random, options)}`
    if (all.has(path)) continue
    all.add(path)
    const bytes = Buffer.from(path, 'latin1')
    const what = random.below(20)
    if (what < 4) {
      mkdirSync(bytes)
      directories.push(path)
      chmodSync(bytes, random.pick([0o755, 0o1777, 0o2775, 0o700]))
    } else if (what < 6) {
      symlinkSync(Buffer.from('x'.repeat(random.pick(options.shortNames === true ? [1, 59, 60, 61] : [1, 59, 60, 61, 200])), 'latin1'), bytes)
    } else if (what < 8 && files.length > 0) {
      linkSync(Buffer.from(random.pick(files), 'latin1'), bytes)
    } else if (what === 8) {
      special.push(`mknod '${path}' p`)
    } else if (what === 9) {
      special.push(`mknod '${path}' ${random.pick(['c', 'b'])} ${random.below(4096)} ${random.below(1 << 20)}`)
    } else {
      makeFile(bytes, random, options)
      files.push(path)
    }
  }
  if (options.xattrs === true) {
    for (const path of files) if (random.chance(0.2)) special.push(`setfattr -h -n user.${random.pick(['a', 'b.c', 'comment'])} -v 0x${random.bytes(random.below(300)).toString('hex')} '${path}'`)
  }
  execFileSync('bash', ['-e'], { input: Buffer.from(special.join('\n'), 'latin1') })
  for (const path of all) {
    const idMax = options.largeIds === true && random.chance(0.3) ? 0xfffffffe : 60_000
    lchownSync(Buffer.from(path, 'latin1'), random.below(idMax), random.below(idMax))
  }
  for (const path of [...all, root]) {
    const seconds = time(random, options)
    // Node takes a time before 1970 for none.
    if (seconds < 0) early.push(`touch -h -d @${seconds} '${path}'`)
    else lutimesSync(Buffer.from(path, 'latin1'), seconds, seconds)
  }
  execFileSync('bash', ['-e'], { input: Buffer.from(early.join('\n'), 'latin1') })
}

function name(random: Random, { rawNames = false, shortNames = false }: SampleOptions): string {
  const length = shortNames ? random.between(1, 5) : random.chance(0.05) ? random.between(200, 255) : random.between(1, 20)
  let text = ''
  for (let at = 0; at < length; at++) {
    text += rawNames && random.chance(0.1) ? String.fromCharCode(random.between(0x80, 0xff)) : random.pick([...'abcdefghijklmnopqrstuvwxyz0123456789_- '])
  }
  return text
}

function makeFile(path: Buffer, random: Random, { holes = false }: SampleOptions): void {
  const fd = openSync(path, 'wx', random.pick([0o644, 0o755, 0o4755, 0o600, 0]))
  try {
    if (holes && random.chance(0.2)) {
      const blocks = random.between(1, 60)
      for (let block = 0; block < blocks; block++) if (random.chance(0.4)) writeSync(fd, random.bytes(4096), 0, 4096, block * 4096)
      // The hole at the end is larger than a block of attributes, behind which GNU tar, which goes by the count of blocks, would miss it.
      ftruncateSync(fd, (blocks + 2) * 4096 + random.below(4096))
      return
    }
    const length = random.pick([0, 1, 511, 512, 513, 4096, random.below(20_000), random.below(600_000)])
    writeSync(fd, random.bytes(length))
  } finally {
    closeSync(fd)
  }
}

function time(random: Random, { nanoseconds = false, farTimes = false }: SampleOptions): number {
  const seconds = farTimes && random.chance(0.2) ? random.pick([-2_000_000_000, -1, 2 ** 31, 2 ** 33]) : random.between(1, 2_000_000_000)
  return nanoseconds ? seconds + random.below(1_000_000) / 1_000_000 : seconds
}

/** A socket's name; the listener is closed, the name stays. */
export async function makeSocket(path: string): Promise<void> {
  // Node removes the name when it closes the listener: a second name of it stays.
  const server = createServer()
  await new Promise<void>((resolve) => server.listen(`${path}.tmp`, resolve))
  linkSync(`${path}.tmp`, path)
  await new Promise((resolve) => server.close(resolve))
}

/** Everything that is hard, but nothing large. The directory is empty before. */
export async function makeHardTree(root: string): Promise<void> {
  const run = (script: string) => execFileSync('bash', ['-ec', script], { cwd: root })
  writeFileSync(`${root}/empty`, '')
  writeFileSync(`${root}/one`, 'x')
  writeFileSync(`${root}/linked`, 'linked content')
  linkSync(`${root}/linked`, `${root}/linked-too`)
  mkdirSync(`${root}/d/e/f`, { recursive: true })
  linkSync(`${root}/linked`, `${root}/d/e/linked-three`)
  for (const length of [1, 59, 60, 61, 4095]) symlinkSync('t'.repeat(length), `${root}/symlink-${length}`)
  writeFileSync(Buffer.concat([Buffer.from(`${root}/raw-`), Buffer.from([0xff, 0xfe, 0x80, 0x0a, 0x09])]), 'raw name')
  writeFileSync(`${root}/${'n'.repeat(255)}`, 'long name')
  await makeSocket(`${root}/socket`)
  run(`
    mknod fifo p; mknod char c 1 3; mknod block b 259 1048575
    ln fifo fifo-too; ln -P symlink-60 symlink-60-too
    chmod 6751 one; chmod 1777 d; chown 4294967294:4294967293 linked
    setfattr -n user.comment -v 'a comment' linked
    setfattr -n user.empty d
    setfattr -n user.raw -v 0x00ff00 d
    setfattr -n trusted.of.root -v yes d/e
    setfattr -n user.large -v 0x$(head -c 3000 /dev/urandom | od -An -tx1 | tr -d ' \\n') one
    setfacl -m u:12345:rwx,g:54321:r-x d
    setfacl -d -m u:12345:rx d/e
    setfattr -n security.capability -v 0x0100000200200000000000000000000000000000 empty
    truncate -s 5G sparse-empty
    truncate -s 1000000 sparse-end; dd if=/dev/urandom of=sparse-end bs=4096 count=1 conv=notrunc status=none
    truncate -s 1M sparse-start; dd if=/dev/urandom of=sparse-start bs=4096 seek=255 count=1 conv=notrunc status=none
    dd if=/dev/urandom of=large bs=1M count=35 status=none
    for i in 0 2 4 6 8 300; do dd if=/dev/urandom of=holes bs=4096 seek=$i count=1 conv=notrunc status=none; done
    dd if=/dev/urandom of=huge bs=1M seek=20000 count=17 status=none
    touch -d @-1000000000.5 empty; touch -d @5000000000.123456789 linked; touch -h -d @0.000000001 symlink-60
    touch -d @-0.5 one; touch -d @1700000000.999999999 d/e/f
  `)
  // Deeper than a path that the kernel takes in one call.
  execFileSync('bash', ['-ec', `for i in $(seq 30); do mkdir -p ${'p'.repeat(200)}; cd ${'p'.repeat(200)}; done; echo deep > file; ln -s deep link; setfattr -n user.deep -v yes file`], { cwd: root })
}
