/**
 * POST /v1/agents: an agent with a token makes itself known by its key. Everything else about agents is for who has the home: `varve agent`.
 */
import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { Type } from 'typebox'
import { ErrorAnswer } from '../error-answer.ts'
import type { ServiceView } from '../service-view.ts'

const schema = {
  summary: 'Makes an agent known by its key',
  description: 'Uses the token up. Who asks again with the same token and key, since the answer was lost, gets the same answer.',
  body: Type.Object({
    token: Type.String({ maxLength: 200, description: 'as `varve agent token` printed it' }),
    publicKey: Type.String({ pattern: '^[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=$', description: 'Ed25519, the 32 bytes themselves, base64' }),
    name: Type.String({ minLength: 1, maxLength: 100, pattern: '^[A-Za-z0-9][A-Za-z0-9._-]*$', description: 'for people' }),
  }),
  response: {
    201: Type.Object({ agent: Type.String({ description: 'its id, which it gives when it connects' }) }, { description: 'it is known' }),
    400: ErrorAnswer, 403: ErrorAnswer, 409: ErrorAnswer, 500: ErrorAnswer,
  },
}

export const agentsRoute: FastifyPluginAsyncTypebox<{ view: ServiceView }> = async (app, { view }) => {
  app.post('/v1/agents', { schema }, async ({ body: { token, publicKey, name } }, reply) => {
    const agent = await view.enrol({ token, publicKey: Buffer.from(publicKey, 'base64'), name })
    return reply.status(201).send({ agent })
  })
}
