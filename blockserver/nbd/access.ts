/**
 * Access rules: which client may do what with which export. The first rule that matches decides; with rules and no match, nothing is allowed.
 * What is denied is neither listed nor told apart from what does not exist.
 */
import net from 'node:net'
import { VarveError } from '@varve/images/errors.ts'
import { peerUid } from '@varve/images/native/libc.ts'
import { parseImageName } from './image-name.ts'

export const ALLOWANCES = ['deny', 'read-only', 'read-write'] as const
export type Allowance = (typeof ALLOWANCES)[number]

export interface AccessRule {
  /** Glob of canonical names of exports: `*` is any text, `?` one character. Any export unless given. */
  export?: string
  /** `ADDRESS`, `ADDRESS/BITS`, `unix` (any client of a unix socket) or `uid:N` (one of that user). Any client unless given. */
  client?: string
  /** Glob of who the client is by TLS: common name of its certificate, or user of its key. Any client unless given, also one without TLS. */
  identity?: string
  allow: Allowance
}

/** Who a client is, as far as its connection tells. */
export interface ClientIdentity {
  /** Of a TCP peer. */
  address?: string
  /** Of the process at the other end of a unix socket. */
  uid?: number
  /** By TLS: common name of the certificate that was verified, or user of the key that was proven. */
  name?: string
}

interface Condition {
  allow: Allowance
  matches(exportName: string, client: ClientIdentity): boolean
}

export class AccessRules {
  readonly #conditions: readonly Condition[]
  /** True if a rule asks who the client is by TLS. */
  readonly askIdentity: boolean

  /** @throws VarveError ACCESS_INVALID */
  constructor(rules: readonly AccessRule[]) {
    this.#conditions = rules.map(conditionOf)
    this.askIdentity = rules.some(({ identity }) => identity !== undefined)
  }

  /** @param exportName canonical; of an image, the rules for its disk hold */
  allowance(exportName: string, client: ClientIdentity): Allowance {
    const name = parseImageName(exportName)?.disk ?? exportName
    return this.#conditions.find((condition) => condition.matches(name, client))?.allow ?? 'deny'
  }
}

/** What the kernel says about the peer of a socket; nothing if that has gone already. */
export function identifyPeer(socket: net.Socket): ClientIdentity {
  const address = socket.remoteAddress
  if (address !== undefined) return { address: plainAddress(address) }
  const { fd } = (socket as unknown as { _handle: { fd: number } })._handle
  return { uid: peerUid(fd) }
}

/** True if all of `text` fits `glob`: `*` is any text, `?` one character. Time is at most the product of their lengths. */
export function matchesGlob(glob: string, text: string): boolean {
  let at = 0
  let globAt = 0
  /** Where the last star began to match, and what is behind it in the glob. */
  let star: { at: number; globAt: number } | undefined
  while (at < text.length) {
    if (glob[globAt] === '*') star = { at, globAt: ++globAt }
    else if (globAt < glob.length && (glob[globAt] === '?' || glob[globAt] === text[at])) {
      at++
      globAt++
    } else if (star !== undefined) {
      at = ++star.at
      globAt = star.globAt
    } else return false
  }
  while (glob[globAt] === '*') globAt++
  return globAt === glob.length
}

function conditionOf(rule: AccessRule): Condition {
  const { export: exportGlob, client, identity, allow } = rule
  if (!ALLOWANCES.includes(allow)) throw new VarveError('ACCESS_INVALID', `an access rule allows 'deny', 'read-only' or 'read-write', not '${String(allow)}'`)
  const matchesClient = client === undefined ? () => true : clientMatcher(client)
  return {
    allow,
    matches: (exportName, who) => (exportGlob === undefined || matchesGlob(exportGlob, exportName)) && matchesClient(who)
      && (identity === undefined || (who.name !== undefined && matchesGlob(identity, who.name))),
  }
}

/** Understands `client` of a rule. @throws VarveError ACCESS_INVALID */
export function clientMatcher(text: string): (client: ClientIdentity) => boolean {
  if (text === 'unix') return ({ uid }) => uid !== undefined
  const user = /^uid:(\d{1,10})$/.exec(text)
  if (user !== null) return ({ uid }) => uid === Number(user[1])
  const [address, bits, ...rest] = text.split('/')
  const family = net.isIP(address)
  const bitsMost = family === 4 ? 32 : 128
  if (family === 0 || rest.length > 0 || (bits !== undefined && (!/^\d{1,3}$/.test(bits) || Number(bits) > bitsMost))) {
    throw new VarveError('ACCESS_INVALID', `'${text}' is not a client of an access rule; give ADDRESS, ADDRESS/BITS, unix or uid:N`)
  }
  const list = new net.BlockList()
  list.addSubnet(address, bits === undefined ? bitsMost : Number(bits), family === 4 ? 'ipv4' : 'ipv6')
  return ({ address: from }) => from !== undefined && net.isIP(from) === family && list.check(from, family === 4 ? 'ipv4' : 'ipv6')
}

/** An IPv4 peer of a socket that listens on IPv6 is an IPv4 peer. */
export function plainAddress(address: string): string {
  return address.startsWith('::ffff:') && net.isIPv4(address.slice(7)) ? address.slice(7) : address
}
