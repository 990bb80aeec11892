/**
 * What the settings of `varve serve` grant to whom, as the servers take it.
 */
import type { PolicyOptions } from '@varve/blockserver/nbd/policy.ts'
import { TlsCredentials } from '@varve/blockserver/nbd/tls-credentials.ts'
import type { StreamSettings } from '@varve/blockserver/stream/server.ts'
import type { Settings } from './settings.ts'

/** Reads the files that `tls` names. @throws VarveError CREDENTIALS_INVALID */
export function policyOptions({ tls, access, nbd }: Pick<Settings, 'tls' | 'access' | 'nbd'>): PolicyOptions {
  const { mode, certificate, key, ca, verifyPeer, psk } = tls
  return {
    tls: mode === 'off' ? { mode } : { mode, credentials: TlsCredentials.open({ certificateFile: certificate, keyFile: key, caFile: ca, verifyPeer, pskFile: psk }) },
    access: access.length === 0 ? undefined : access,
    defaultExport: nbd.defaultExport,
  }
}

/** What HTTP proves itself by; undefined if it does not. @throws VarveError CREDENTIALS_INVALID */
export function httpCredentials({ http, tls: { certificate, key } }: Pick<Settings, 'http' | 'tls'>): TlsCredentials | undefined {
  return http.tls === 'off' ? undefined : TlsCredentials.open({ certificateFile: certificate, keyFile: key })
}

export function streamSettings({ stream, site, rate }: Pick<Settings, 'stream' | 'site' | 'rate'>): StreamSettings {
  return { limits: stream, sites: site, rates: rate }
}
