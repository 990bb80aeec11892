/**
 * GET /metrics: all figures for Prometheus.
 */
import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { Type } from 'typebox'
import { PROMETHEUS_CONTENT_TYPE, renderPrometheus } from '../prometheus.ts'
import { processFigures } from '../process-figures.ts'
import type { ServiceView } from '../service-view.ts'

const schema = {
  summary: 'Figures for Prometheus',
  response: { 200: { description: 'text exposition format 0.0.4', content: { 'text/plain': { schema: Type.String() } } } },
}

export const metricsRoute: FastifyPluginAsyncTypebox<{ view: ServiceView }> = async (app, { view }) => {
  app.get('/metrics', { schema }, async (_request, reply) => {
    void reply.type(PROMETHEUS_CONTENT_TYPE)
    return renderPrometheus({ ...await view.figures(), process: processFigures() })
  })
}
