/**
 * GET and HEAD /images/DISK.FORMAT: a snapshot or a layer as an image file, computed where it is read; byte ranges (RFC 9110, section 14) of one part.
 */
import { Readable } from 'node:stream'
import type { FastifyReply, FastifyRequest } from 'fastify'
import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { Type } from 'typebox'
import { ErrorAnswer } from '../error-answer.ts'
import { identifyPeer } from '../../nbd/access.ts'
import { HTTP_IMAGE_MS_MAX } from '../limits.ts'
import type { ServedImage, ServiceView } from '../service-view.ts'

/** Of an answer, made at a time. */
const PIECE_BYTES = 1 << 20

const params = Type.Object({ file: Type.String({ pattern: '^[\\w.:@-]{1,250}\\.[a-z0-9]{1,10}$', description: '`CVD@SNAPSHOT.FORMAT` or `layer:NAME@N.FORMAT`; FORMAT is raw, vhd, vhdx, vmdk or qcow2' }) })
const bytes = (description: string) => ({ description, content: { 'application/octet-stream': { schema: Type.Unsafe<Readable>({ type: 'string', format: 'binary' }) } } })
const schema = {
  params,
  summary: 'A disk as an image file',
  description: 'The file is computed from the disk, and never written; the same disk has the same ETag.',
  response: { 200: bytes('all of it'), 206: bytes('the range that was asked for'), 304: Type.Null({ description: 'it is as If-None-Match says' }), 403: ErrorAnswer, 404: ErrorAnswer, 416: ErrorAnswer },
}

type Part = { offset: number; length: number }

export const imagesRoute: FastifyPluginAsyncTypebox<{ open: NonNullable<ServiceView['image']> }> = async (app, { open }) => {
  app.get('/images/:file', { schema, handlerTimeout: HTTP_IMAGE_MS_MAX, exposeHeadRoute: false }, (request, reply) => answer(request, reply, request.params.file, open))
  app.head('/images/:file', { schema: { ...schema, summary: 'Size and ETag of an image file' } }, (request, reply) => answer(request, reply, request.params.file, open))
}

async function answer(request: FastifyRequest, reply: FastifyReply, file: string, open: NonNullable<ServiceView['image']>): Promise<Readable | null | { error: { message: string } }> {
  const dot = file.lastIndexOf('.')
  const image = await open({ disk: file.slice(0, dot), format: file.slice(dot + 1), client: identifyPeer(request.raw.socket) })
  try {
    void reply.headers({ 'accept-ranges': 'bytes', etag: image.etag, 'cache-control': 'no-cache' }).type('application/octet-stream')
    if (request.headers['if-none-match'] === image.etag) {
      await image.release()
      void reply.status(304)
      return null
    }
    const part = partOf(request, image)
    if (part === undefined) {
      await image.release()
      void reply.status(416).header('content-range', `bytes */${image.device.sizeBytes}`).type('application/json')
      return { error: { message: 'the range is not inside of the image' } }
    }
    const isWhole = part.length === image.device.sizeBytes
    void reply.status(isWhole ? 200 : 206).header('content-length', part.length)
    if (!isWhole) void reply.header('content-range', `bytes ${part.offset}-${part.offset + part.length - 1}/${image.device.sizeBytes}`)
    if (request.method !== 'HEAD') return streamOf(image, part)
    await image.release()
    return null
  } catch (error) {
    await image.release()
    throw error
  }
}

/** What of the image is asked for; undefined for what it has not. Several ranges at once, and what is no range of bytes, are not looked at. */
function partOf({ headers }: FastifyRequest, { device: { sizeBytes }, etag }: ServedImage): Part | undefined {
  const whole = { offset: 0, length: sizeBytes }
  const condition = headers['if-range']
  const [, first, last] = /^bytes=(\d*)-(\d*)$/.exec(headers.range ?? '') ?? []
  if (first === undefined || (first === '' && last === '') || (condition !== undefined && condition !== etag)) return whole
  if (first === '') {
    const length = Math.min(Number(last), sizeBytes)
    return length === 0 ? undefined : { offset: sizeBytes - length, length }
  }
  const offset = Number(first)
  if (!(offset < sizeBytes) || (last !== '' && Number(last) < offset)) return undefined
  return { offset, length: (last === '' ? sizeBytes : Math.min(Number(last) + 1, sizeBytes)) - offset }
}

/** Lets go of the image when it is closed, also where nothing of it was read: the client may be gone by then. */
function streamOf({ device, release }: ServedImage, part: Part): Readable {
  const stream = Readable.from(pieces(device, part), { objectMode: false, highWaterMark: PIECE_BYTES })
  return stream.once('close', () => void release())
}

async function* pieces(device: ServedImage['device'], { offset, length }: Part): AsyncGenerator<Buffer, void> {
  for (let at = offset; at < offset + length; at += PIECE_BYTES) {
    const piece = Buffer.allocUnsafe(Math.min(PIECE_BYTES, offset + length - at))
    await device.read(piece, at)
    yield piece
  }
}
