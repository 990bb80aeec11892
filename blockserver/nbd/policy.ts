/**
 * What a server grants to whom: TLS, access rules, the default export. A connection keeps to the policy that was in force when it came.
 */
import { type AccessRule, AccessRules } from './access.ts'
import { TlsCredentials, type TlsMaterial } from './tls-credentials.ts'

/** `optional`: clients may use TLS. `required`: nothing but TLS is served. */
export type TlsSettings = { mode: 'off' } | { mode: 'optional' | 'required'; credentials: TlsCredentials }

export interface PolicyOptions {
  /** Off unless given. */
  tls?: TlsSettings
  /** In order; the first that matches decides, and what none matches is denied. Everybody may read and write unless given. */
  access?: readonly AccessRule[]
  /** What the empty name stands for; unless given, the provider of exports says. */
  defaultExport?: string
}

export interface Policy {
  readonly tls: TlsSettings
  readonly access: AccessRules | undefined
  readonly defaultExport: string | undefined
}

/** @throws VarveError ACCESS_INVALID */
export function policyOf({ tls = { mode: 'off' }, access, defaultExport }: PolicyOptions): Policy {
  return { tls, access: access === undefined ? undefined : new AccessRules(access), defaultExport }
}

/** A policy as a value that threads can send. */
export type SendablePolicy = Omit<PolicyOptions, 'tls'> & { tls: { mode: 'off' } | { mode: 'optional' | 'required'; material: TlsMaterial } }

export function sendablePolicy({ tls = { mode: 'off' }, access, defaultExport }: PolicyOptions): SendablePolicy {
  return { tls: tls.mode === 'off' ? tls : { mode: tls.mode, material: tls.credentials.material }, access, defaultExport }
}

export function receivedPolicy({ tls, ...policy }: SendablePolicy): Policy {
  return policyOf({ ...policy, tls: tls.mode === 'off' ? tls : { mode: tls.mode, credentials: new TlsCredentials(tls.material) } })
}
