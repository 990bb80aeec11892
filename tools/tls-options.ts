/**
 * TLS as the command line says it: options of `varve serve`, and the settings of a server that they mean.
 */
import { Option } from 'commander'
import type { Command } from 'commander'
import type { TlsSettings } from '@varve/blockserver/nbd/policy.ts'
import { TlsCredentials } from '@varve/blockserver/nbd/tls-credentials.ts'

export interface TlsOptions {
  tls: 'off' | 'optional' | 'required'
  tlsCert?: string
  tlsKey?: string
  tlsCa?: string
  tlsVerifyPeer?: boolean
  tlsPsk?: string
}

export function addTlsOptions(command: Command): Command {
  return command
    .addOption(new Option('--tls <mode>', 'whether NBD clients may, or must, use TLS').choices(['off', 'optional', 'required']).default('off'))
    .option('--tls-cert <file>', 'certificate of this server, PEM')
    .option('--tls-key <file>', 'its key, PEM')
    .option('--tls-ca <file>', 'certificates that sign those of clients, PEM; clients are then asked for theirs')
    .option('--tls-verify-peer', 'refuse clients without a certificate')
    .option('--tls-psk <file>', 'shared keys: lines USER:HEX, as psktool writes them')
}

/** Reads the files. @throws VarveError CREDENTIALS_INVALID */
export function tlsSettings(options: TlsOptions): TlsSettings {
  if (options.tls === 'off') return { mode: 'off' }
  const { tlsCert: certificateFile, tlsKey: keyFile, tlsCa: caFile, tlsVerifyPeer: verifyPeer, tlsPsk: pskFile } = options
  return { mode: options.tls, credentials: TlsCredentials.open({ certificateFile, keyFile, caFile, verifyPeer, pskFile }) }
}
