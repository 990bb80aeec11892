/**
 * GET /v1/stream: where a connection becomes the stream of an agent. What is answered here is only who does not ask for that; see ../upgrade.ts
 */
import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { Type } from 'typebox'
import { STREAM_PATH, STREAM_PROTOCOL } from '../../stream/frames.ts'
import { ErrorAnswer } from '../error-answer.ts'

const schema = {
  summary: 'Becomes the stream of an agent',
  description: `Chunks, by priority, on one connection. After 101 both sides speak the frames of ${STREAM_PROTOCOL}, which docs/formats/stream.md has byte by byte.`,
  headers: Type.Object({
    connection: Type.Optional(Type.String({ description: '`Upgrade`' })),
    upgrade: Type.Optional(Type.String({ description: `\`${STREAM_PROTOCOL}\`` })),
  }),
  response: {
    101: Type.Null({ description: 'frames follow' }),
    426: Type.Object(ErrorAnswer.properties, { description: 'the request does not ask for that' }),
    503: Type.Object(ErrorAnswer.properties, { description: 'there are too many connections, or the server ends' }),
  },
}

export const streamRoute: FastifyPluginAsyncTypebox = async (app) => {
  app.get(STREAM_PATH, { schema }, async (_request, reply) =>
    reply.status(426).header('connection', 'upgrade').header('upgrade', STREAM_PROTOCOL).send({ error: { message: `ask with Connection: Upgrade and Upgrade: ${STREAM_PROTOCOL}` } }))
}
