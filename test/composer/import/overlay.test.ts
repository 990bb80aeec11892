import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { mkdirSync, writeFileSync } from 'node:fs'
import test, { describe } from 'node:test'
import { Kind } from '@varve/images/tree/tree.ts'
import { mergeTrees } from '@varve/composer/merge/merge.ts'
import { Random, testSeed } from '../../random.ts'
import { ImportHome } from './import-home.ts'
import { assertSameLines, listDirectory, listTree } from './listing.ts'
import { makeRandomTree } from './sample-tree.ts'

const seed = testSeed()

/** Mounts an overlay of `lower` and `upper` inside the home, runs a script in it, and lists what it shows. */
function inOverlay(home: ImportHome, script: string, options = 'redirect_dir=off,metacopy=off,index=off'): string[] {
  // The upper directory cannot be on an overlay itself, which the temporary directory may be.
  const base = home.makeDirectory('base')
  execFileSync('mount', ['-t', 'tmpfs', 'tmpfs', base])
  try {
    for (const name of ['upper', 'work', 'merged']) mkdirSync(`${base}/${name}`)
    execFileSync('mount', ['-t', 'overlay', 'overlay', '-o', `lowerdir=${home.path('lower')},upperdir=${base}/upper,workdir=${base}/work,${options}`, `${base}/merged`])
    try {
      execFileSync('bash', ['-ec', script], { cwd: `${base}/merged`, stdio: ['ignore', 'ignore', 'inherit'] })
      execFileSync('sync', ['-f', `${base}/merged`])
      return listDirectory(`${base}/merged`)
    } finally {
      execFileSync('umount', [`${base}/merged`])
      execFileSync('cp', ['-a', '--sparse=never', `${base}/upper`, home.path('upper')])
    }
  } finally {
    execFileSync('umount', [base])
  }
}

const CHANGES = `
  rm -r deleted-directory; rm deleted-file
  rm -r again; mkdir again; echo new > again/new
  rm -r was-directory; echo file > was-directory
  rm was-file; mkdir was-file; echo in > was-file/in
  echo more >> changed; chmod 600 only-mode; chown 7:8 only-owner
  setfattr -n user.added -v yes only-attribute
  mv moved-file moved/here
  mkdir -p deep/er/est; echo x > deep/er/est/file; ln deep/er/est/file deep/linked
  mknod device c 1 3; mkfifo fifo; ln -s nowhere symlink
`

function makeLower(home: ImportHome): void {
  const lower = home.makeDirectory('lower')
  mkdirSync(`${lower}/random`)
  makeRandomTree(`${lower}/random`, new Random(seed), { entries: 80 })
  execFileSync('bash', ['-ec', 'mkdir -p deleted-directory/sub again/old was-directory moved deep; for f in deleted-directory/sub/x deleted-file again/old/x was-directory/x was-file changed only-mode only-owner only-attribute moved-file deep/below; do echo $f > $f; done'], { cwd: lower })
}

describe('import of an overlayfs upper directory', () => {
  test('lower and upper merged are what the kernel shows', async () => {
    await using home = new ImportHome()
    makeLower(home)
    const shown = inOverlay(home, CHANGES)
    const lower = await home.tree(`dir:${home.path('lower')}`)
    const upper = await home.tree(`overlay:${home.path('upper')}`)
    assert.equal(upper.kind[upper.inode[upper.find('deleted-file')]], Kind.whiteout)
    assert.equal(upper.opaque[upper.inode[upper.find('again')]], 1)
    assert.ok(upper.xattrSets.every((set) => set.every(({ name }) => !name.includes('overlay'))))
    await using writer = home.store.writer()
    const { tree } = await mergeTrees([{ name: 'lower@1', kind: 'base', tree: lower }, { name: 'upper@1', kind: 'app', tree: upper }], { store: home.store, writer })
    await writer.commit()
    assertSameLines(listTree(tree, home.store), shown, `seed ${seed}`)
  })

  test('a renamed directory and a file without content are refused, with what to do', async () => {
    for (const [options, script, message] of [
      ['redirect_dir=on', 'mv deep elsewhere', /elsewhere\/? was renamed.*redirect_dir=off/],
      ['metacopy=on,redirect_dir=on', 'chmod 600 only-mode', /only-mode has its content in a layer below.*metacopy=off/],
    ] as const) {
      await using home = new ImportHome()
      makeLower(home)
      inOverlay(home, script, options)
      await assert.rejects(home.import(`overlay:${home.path('upper')}`), { code: 'SOURCE_UNSUPPORTED', message })
      // As a plain directory it is one.
      await home.import(`dir:${home.path('upper')}`)
    }
  })

  test('whiteouts as attributes, attributes of nested overlays, and marks in the user namespace', async () => {
    await using home = new ImportHome()
    const upper = home.makeDirectory('upper')
    for (const name of ['gone', 'gone-too', 'not-gone', 'nested']) writeFileSync(`${upper}/${name}`, name === 'not-gone' ? 'x' : '')
    mkdirSync(`${upper}/x`)
    mkdirSync(`${upper}/opaque`)
    execFileSync('bash', ['-ec', `
      setfattr -n trusted.overlay.whiteout gone; setfattr -n user.overlay.whiteout -v y gone-too; setfattr -n trusted.overlay.whiteout not-gone
      setfattr -n trusted.overlay.opaque -v x x; setfattr -n user.overlay.opaque -v y opaque
      setfattr -n trusted.overlay.overlay.opaque -v y nested; setfattr -n trusted.overlay.origin -v 0x00 nested; setfattr -n user.mine -v 1 nested
      mknod null c 1 3; mknod char-gone c 0 0; mknod block-not-gone b 0 0
    `], { cwd: upper })
    const tree = await home.tree(`overlay:${upper}`)
    const kinds = (...paths: string[]) => paths.map((path) => tree.kind[tree.inode[tree.find(path)]])
    assert.deepEqual(kinds('gone', 'gone-too', 'char-gone'), [Kind.whiteout, Kind.whiteout, Kind.whiteout])
    assert.deepEqual(kinds('not-gone', 'null', 'block-not-gone', 'nested'), [Kind.file, Kind.character, Kind.block, Kind.file])
    assert.equal(tree.opaque[tree.inode[tree.find('x')]], 0)
    assert.equal(tree.opaque[tree.inode[tree.find('opaque')]], 1)
    assert.deepEqual(tree.xattrSets[tree.xattrSet[tree.inode[tree.find('nested')]]].map(({ name }) => name), ['trusted.overlay.opaque', 'user.mine'])
    // As a plain directory, a device 0/0 is a device, and an attribute an attribute.
    const plain = await home.tree(`dir:${upper}`)
    assertSameLines(listTree(plain, home.store), listDirectory(upper))
  })
})
