/**
 * Network line: two hosts, each a network namespace, and a line of a given rate between them: a pair of veth devices with a token bucket on both
 * ends, so that TCP does on it what it does on a thin line. Needs root. Delay is added by a DelayLine in one of the hosts.
 */
import { type ChildProcess, execFileSync, spawn, type SpawnOptions } from 'node:child_process'
import { randomBytes } from 'node:crypto'

export interface NetworkLineOptions {
  /** As tc(8) has it: `20mbit`. */
  rate: string
}

/** One end of the line. */
export interface LineHost {
  /** Of the network namespace, which `ip netns exec` takes. */
  readonly namespace: string
  /** On the line. */
  readonly address: string
}

const BURST = '32kb'
const LATENCY = '100ms'

function ip(...args: string[]): void {
  execFileSync('ip', args, { stdio: ['ignore', 'ignore', 'pipe'] })
}

export class NetworkLine implements Disposable {
  readonly near: LineHost
  readonly far: LineHost

  /** @throws Error without the rights, or without iproute2 and ethtool */
  constructor({ rate }: NetworkLineOptions) {
    const id = randomBytes(3).toString('hex')
    this.near = { namespace: `varve-${id}-near`, address: '10.213.0.1' }
    this.far = { namespace: `varve-${id}-far`, address: '10.213.0.2' }
    try {
      for (const { namespace } of [this.near, this.far]) ip('netns', 'add', namespace)
      // Made within the namespaces: the host's own network sees nothing of them.
      ip('-n', this.near.namespace, 'link', 'add', 'line', 'type', 'veth', 'peer', 'name', 'line', 'netns', this.far.namespace)
      for (const { namespace, address } of [this.near, this.far]) {
        ip('-n', namespace, 'addr', 'add', `${address}/24`, 'dev', 'line')
        for (const device of ['lo', 'line']) ip('-n', namespace, 'link', 'set', device, 'up')
        // Segments that are larger than a packet would pass the bucket in one piece.
        execFileSync('ip', ['netns', 'exec', namespace, 'ethtool', '-K', 'line', 'tso', 'off', 'gso', 'off', 'gro', 'off'], { stdio: ['ignore', 'ignore', 'pipe'] })
        execFileSync('tc', ['-n', namespace, 'qdisc', 'add', 'dev', 'line', 'root', 'tbf', 'rate', rate, 'burst', BURST, 'latency', LATENCY], { stdio: ['ignore', 'ignore', 'pipe'] })
      }
    } catch (error) {
      this[Symbol.dispose]()
      throw error
    }
  }

  /** Starts a program on one of the hosts; who starts it ends it. */
  spawn(host: LineHost, program: string, args: readonly string[], options: SpawnOptions = {}): ChildProcess {
    return spawn('ip', ['netns', 'exec', host.namespace, program, ...args], options)
  }

  /** Takes both hosts away, with the line. */
  [Symbol.dispose](): void {
    for (const { namespace } of [this.near, this.far]) {
      try {
        ip('netns', 'del', namespace)
      } catch {
        // It was not made.
      }
    }
  }
}
