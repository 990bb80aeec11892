/**
 * Errors as HTTP clients see them: `{"error": {"code", "message"}}`, as the command prints them with --json.
 */
import type { FastifyError, FastifyInstance } from 'fastify'
import { Type } from 'typebox'
import { type ErrorCode, isVarveError } from '@varve/images/errors.ts'

/** For the schemas of routes. */
export const ErrorAnswer = Type.Object({
  error: Type.Object({
    code: Type.Optional(Type.String({ description: 'one of docs/errors.md, if the error is of Varve' })),
    message: Type.String(),
  }),
}, { description: 'what went wrong' })

/** Of errors that are the client's; all others are 500. */
const STATUSES: Partial<Record<ErrorCode, number>> = { NOT_FOUND: 404, EXPORT_NOT_FOUND: 404, TOKEN_INVALID: 403, NAME_INVALID: 400, ALREADY_EXISTS: 409 }

export function answerErrors(app: FastifyInstance): void {
  app.setNotFoundHandler((request, reply) => reply.status(404).send({ error: { message: `no such resource: ${request.method} ${request.url.slice(0, 100)}` } }))
  app.setErrorHandler((error: FastifyError, request, reply) => {
    if (isVarveError(error)) {
      const { code, message } = error
      return reply.status(STATUSES[code] ?? 500).send({ error: { code, message } })
    }
    const status = error.statusCode ?? 500
    // What Fastify says of a request that is refused, or was not answered in time.
    if (status < 500 || status === 503) return reply.status(status).send({ error: { message: error.message } })
    request.log.error({ err: error, method: request.method, url: request.url }, 'a request failed')
    return reply.status(500).send({ error: { message: 'the server failed; its log says why' } })
  })
}
