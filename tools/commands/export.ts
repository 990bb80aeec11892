/**
 * `varve export`: a CVD, a snapshot or a layer as an image file that hypervisors take.
 */
import path from 'node:path'
import { Option } from 'commander'
import type { Command } from 'commander'
import { digestToHex } from '@varve/images/chunk/digest.ts'
import { ChunkCache } from '@varve/images/device/chunk-cache.ts'
import { VarveError } from '@varve/images/errors.ts'
import { SUBFORMATS, computeImage, computeImageOver } from '@varve/images/formats/compute-image.ts'
import { DISK_FORMATS } from '@varve/images/formats/disk-image.ts'
import type { DiskFormat } from '@varve/images/formats/disk-image.ts'
import { action } from '../invocation.ts'
import { openSettledDisk } from '../settled-disk.ts'
import { formatBytes, formatDuration, formatTable } from '../terminal.ts'
import { writeImageFile, writeImageStream } from '../write-image.ts'

/** Each chunk is read once or twice. */
const CACHE_BYTES = 128 << 20

interface ExportOptions {
  format: DiskFormat
  subformat?: string
  base?: string
  baseFile?: string
  force?: boolean
}

export function addExportCommand(program: Command): void {
  program.command('export').argument('<name>', 'CVD, CVD@SNAPSHOT or layer:NAME[@N]').argument('<file>', 'or - for standard output')
    .addOption(new Option('--format <format>', 'of the image').choices(DISK_FORMATS).makeOptionMandatory())
    .option('--subformat <kind>', `kind of the format: ${Object.entries(SUBFORMATS).filter(([, kinds]) => kinds.length > 1).map(([format, kinds]) => `${format} ${kinds.join(' or ')}`).join('; ')}`)
    .option('--base <name>', 'only what differs from this, which has the same form as NAME (vhd, qcow2)')
    .option('--base-file <file>', 'where the image of --base is, as the new image is to name it; default: beside it, named NAME.FORMAT')
    .option('--force', 'replace a file that exists')
    .description('write a disk as an image file, sparse, whole and durable when it has its name')
    .action(action(async (invocation, name: string, file: string, options: ExportOptions) => {
      const { signal } = invocation
      if (file === '-' && invocation.json) throw new VarveError('NAME_INVALID', 'with --json, standard output is for the result; name a file')
      await using home = await invocation.openHome()
      const cache = ChunkCache.create({ bytesMax: CACHE_BYTES })
      await using disk = await openSettledDisk(name, { home, cache, signal })
      await using base = options.base === undefined ? undefined : await openSettledDisk(options.base, { home, cache, signal })
      const { format, subformat } = options
      const image = base === undefined
        ? await computeImage(format, disk.device, { subformat, digest: disk.digest })
        : await computeImageOver(format, disk, { ...base, file: options.baseFile ?? `${path.basename(options.base!)}.${format}` })
      const progress = await invocation.progress(`exporting ${name}`)
      const started = performance.now()
      try {
        const onProgress = (done: number): void => progress.update(done, image.sizeBytes)
        const written = file === '-' ? await writeImageStream(image, process.stdout, { signal, onProgress }) : await writeImageFile(image, file, { force: options.force, signal, onProgress })
        progress.stop()
        const milliseconds = performance.now() - started
        const document = { name, file, format, subformat: subformat ?? SUBFORMATS[format][0], base: options.base ?? null, map: digestToHex(disk.digest), sizeBytes: disk.device.sizeBytes, fileBytes: image.sizeBytes, writtenBytes: written, milliseconds }
        const rows = [
          ['disk', formatBytes(disk.device.sizeBytes)],
          ['file', `${file}, ${formatBytes(image.sizeBytes)}, of which ${formatBytes(written)} written`],
          ['time', `${formatDuration(milliseconds)}, ${formatBytes((written / milliseconds) * 1000)}/s`],
        ]
        if (file === '-') invocation.note(formatTable(rows))
        else invocation.result(document, formatTable(rows))
      } finally {
        progress.stop()
      }
    }))
}
