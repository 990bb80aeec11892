/**
 * An HTTP server with streams from memory behind it.
 */
import { HttpServer } from '@varve/blockserver/http/server.ts'
import type { TlsCredentials } from '@varve/blockserver/nbd/tls-credentials.ts'
import type { StreamLimits } from '@varve/blockserver/stream/limits.ts'
import { STREAM_LIMITS } from '@varve/blockserver/stream/limits.ts'
import type { RateClock, RateRule, Site } from '@varve/blockserver/stream/rate-limits.ts'
import { StreamServer } from '@varve/blockserver/stream/server.ts'
import { type AgentKey, MemorySource } from './memory-source.ts'
import { RawAgent } from './raw-agent.ts'

export interface ServeStreamsOptions {
  limits?: Partial<StreamLimits>
  sites?: Site[]
  rates?: RateRule[]
  clock?: RateClock
  credentials?: TlsCredentials
}

export async function serveStreams({ limits, sites = [], rates = [], clock, credentials }: ServeStreamsOptions = {}) {
  const source = new MemorySource()
  const streams = new StreamServer({ source, settings: { limits: { ...STREAM_LIMITS, ...limits }, sites, rates }, clock })
  const view = {
    exports: async () => [],
    figures: async () => { throw new Error('not for these tests') },
    enrol: async () => { throw new Error('not for these tests') },
    stopping: () => false,
  }
  const http = await HttpServer.listen('127.0.0.1:0', { view, streams, credentials })
  const { address } = http
  const key = source.addAgent()
  return {
    source,
    streams,
    http,
    address,
    key,
    connect: () => RawAgent.connect({ address }),
    open: (as: AgentKey = key) => RawAgent.open({ address }, as),
    async [Symbol.asyncDispose]() {
      await streams[Symbol.asyncDispose]()
      await http[Symbol.asyncDispose]()
    },
  }
}
