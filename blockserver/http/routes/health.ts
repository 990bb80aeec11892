/**
 * GET /healthz: whether clients may be sent here.
 */
import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { Type } from 'typebox'
import type { ServiceView } from '../service-view.ts'

const schema = {
  summary: 'Whether clients may be sent here',
  response: {
    200: Type.Object({ status: Type.Literal('ok') }, { description: 'they may' }),
    503: Type.Object({ status: Type.Literal('stopping') }, { description: 'the server answers what it was asked, and takes no new clients' }),
  },
}

export const healthRoute: FastifyPluginAsyncTypebox<{ view: ServiceView }> = async (app, { view }) => {
  app.get('/healthz', { schema }, async (_request, reply) => (view.stopping() ? reply.status(503).send({ status: 'stopping' }) : { status: 'ok' as const }))
}
