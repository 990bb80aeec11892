/**
 * GET /boot/...: kernel and initrd of the recovery medium, and a script for iPXE that starts them, for machines that boot from the network.
 * docs/recovery.md
 */
import { createReadStream } from 'node:fs'
import type { ReadStream } from 'node:fs'
import { open } from 'node:fs/promises'
import path from 'node:path'
import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { Type } from 'typebox'
import { VarveError } from '@varve/images/errors.ts'
import { ErrorAnswer } from '../error-answer.ts'
import { HTTP_BOOT_FILE_MS_MAX } from '../limits.ts'

const FILES = ['vmlinuz', 'initrd.img'] as const
const CONSOLES = 'console=ttyS0,115200 console=tty0'
/** What neither iPXE nor the kernel takes for more than a word. */
const WORD = '^[\\w.:/@+,=-]{1,200}$'

const word = (description: string) => Type.Optional(Type.String({ pattern: WORD, description }))
const Answers = Type.Object({
  server: word('URL of the server; this one unless it is given'),
  cvd: word('what is streamed'),
  target: word('disk of the machine, such as /dev/sda'),
  token: word('of `varve agent token`'),
  ip: word('ADDRESS/PREFIX,GATEWAY,NAMESERVER instead of DHCP'),
}, { additionalProperties: false })

const FileAnswer = { description: 'the file', content: { 'application/octet-stream': { schema: Type.Unsafe<ReadStream>({ type: 'string', format: 'binary' }) } } }

/** @param options.directory holds what `varve recovery build` made */
export const bootFilesRoute: FastifyPluginAsyncTypebox<{ directory: string }> = async (app, { directory }) => {
  for (const name of FILES) {
    app.get(`/boot/${name}`, { schema: { summary: `${name} of the recovery medium`, response: { 200: FileAnswer, 404: ErrorAnswer } }, handlerTimeout: HTTP_BOOT_FILE_MS_MAX }, async (_request, reply) => {
      const file = await openFile(path.join(directory, name))
      const { size } = await file.stat()
      void reply.type('application/octet-stream').header('content-length', size)
      return createReadStream('', { fd: file })
    })
  }

  const schema = { summary: 'Script for iPXE that starts the recovery medium; what it is not told, the medium asks', querystring: Answers, response: { 200: { description: 'the script', content: { 'text/plain': { schema: Type.String() } } }, 400: ErrorAnswer } }
  app.get('/boot/boot.ipxe', { schema }, async (request, reply) => {
    const { server = `${request.protocol}://${request.host}`, ...answers } = request.query
    if (!new RegExp(WORD).test(server)) return reply.status(400).send({ error: { message: 'the request does not say by which host and port this server was found' } })
    const values = Object.entries({ server, ...answers }).map(([name, value]) => `varve.${name}=${value}`)
    // The files lie beside the script.
    const [kernel, initrd] = FILES
    void reply.type('text/plain; charset=utf-8')
    return `#!ipxe\nkernel ${kernel} initrd=${initrd} ${CONSOLES} ${values.join(' ')}\ninitrd ${initrd}\nboot\n`
  })
}

async function openFile(name: string) {
  try {
    return await open(name)
  } catch (cause) {
    throw new VarveError('NOT_FOUND', `${name} cannot be read: ${(cause as NodeJS.ErrnoException).code}; varve recovery build makes it`, { cause })
  }
}
