/**
 * A home with the layer `files@1` and the CVD `desk` of it, for tests of what is served.
 */
import { mkdirSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { ScratchDirectory, varve, VarveServer } from '../varve-command.ts'

export class DeskHome implements Disposable {
  readonly scratch = new ScratchDirectory('desk')
  readonly path = this.scratch.join('home')
  /** What `varve compose` says of the CVD's disk. */
  readonly composed: any

  /** @param options.fill makes the layer's files in an empty directory; a single small file unless given @param options.size as for `varve cvd create --size` */
  constructor({ fill = fillWithHello, size }: { fill?: (directory: string) => void; size?: string } = {}) {
    const source = this.scratch.join('source')
    mkdirSync(source)
    fill(source)
    varve(this.path, ['layer', 'import', 'files', `dir:${source}`, '--kind', 'base'])
    varve(this.path, ['cvd', 'create', 'desk', '--layer', 'files', '--boot', 'none', ...size === undefined ? [] : ['--size', size]])
    this.composed = varve(this.path, ['compose', 'desk']).json
  }

  socket(name = 'nbd'): string {
    return this.scratch.join(`${name}.sock`)
  }

  uri(disk = 'desk', socket = this.socket()): string {
    return `nbd+unix:///${encodeURIComponent(disk)}?socket=${socket}`
  }

  /** @param address as for `varve serve --nbd` @param options of `varve serve` besides */
  serve(address = `unix:${this.socket()}`, options: readonly string[] = []): Promise<VarveServer> {
    return VarveServer.start(this.path, address, { args: ['--http', 'off', ...options] })
  }

  [Symbol.dispose](): void {
    this.scratch[Symbol.dispose]()
  }
}

function fillWithHello(directory: string): void {
  writeFileSync(path.join(directory, 'hello'), 'hello from the layer\n')
}
