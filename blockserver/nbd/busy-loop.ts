/**
 * Busy loop: connections on which requests follow each other closely are served by the thread itself, which waits in poll(2) and not in the
 * event loop: a request then costs neither its turn nor its bookkeeping. The event loop is waited for too, has its turn when something happens
 * in it, when a request is up to a promise, and at least every five milliseconds, and gets the connections back when they fall silent.
 */
import { eventLoopOf } from '../event-loop.ts'
import { POLLIN, PollSet } from './socket-calls.ts'

/** Connections of one thread that are served in this way at one time; others are served by the event loop. */
const MEMBERS_MAX = 64
/** How long the event loop waits at most for its turn while requests come without a pause: it may have timers. */
const TURN_MS = 5
/** And while nothing comes. */
const WAIT_MS = 1
/** A connection that is silent for so long is given back. */
const SILENT_MS = 50
/** Connections of one thread that are asked before they are waited for; of more, poll(2) tells sooner which have something. */
const TRIED_MEMBERS_MAX = 4
/** How often they are asked, all together: about as long as a client needs that sends its next request at once. */
const TRIES_MAX = 64
/** Requests that are served in this way before the event loop is asked whether it wants its turn. */
const SERVED_MAX = 8
/** Trying is put off for a while when it was of no use more often than not. */
const CREDIT_MAX = 8
const CREDIT_RETRY = -64

/** A connection as the loop sees it. */
export interface BusyMember {
  readonly fd: number
  /** Something was seen: POLLIN, POLLOUT, an end or a failure. @returns false if the loop is to let go of the connection */
  ready(events: number): boolean
  /** False while its peer most likely waits for an answer. */
  readonly expectsMore: boolean
  /** Serves what has come by now. @returns undefined if nothing has, or nothing is waited for; false if the loop is to let go of the connection */
  tryReceive(): boolean | undefined
  /** The loop has let go of the connection. */
  givenBack(): void
}

export class BusyLoop {
  readonly #members: BusyMember[] = []
  /** When something was last seen of each, ms. */
  readonly #seenMs: number[] = []
  /** The members' sockets; behind them, while the loop runs, the event loop. */
  readonly #poll = new PollSet(MEMBERS_MAX + 1)
  /** Descriptor by which the event loop of this thread waits: undefined until it is looked for, -1 if it was not found. */
  #eventLoopFd: number | undefined
  #nowMs = 0
  /** The event loop has something to do that poll(2) does not see. */
  #yields = false
  /** Above 0: trying has been of use. */
  #credit = CREDIT_MAX
  #scheduled: NodeJS.Immediate | undefined

  readonly #turn = () => {
    this.#scheduled = undefined
    if (this.#yields) this.#yields = false
    else this.#run()
    if (this.#members.length > 0) this.#scheduled = setImmediate(this.#turn)
  }

  /** @param member that the event loop has served until now @param events that are waited for @returns false if the loop has no room: the event loop keeps the connection */
  take(member: BusyMember, events: number): boolean {
    this.#eventLoopFd ??= eventLoopOf(member.fd)
    if (this.#members.length === MEMBERS_MAX || this.#eventLoopFd < 0) return false
    this.#nowMs = performance.now()
    this.#members.push(member)
    this.#seenMs.push(this.#nowMs)
    this.#poll.add(member.fd, events)
    this.#scheduled ??= setImmediate(this.#turn)
    return true
  }

  /** Other events are waited for from now on. */
  change(member: BusyMember, events: number): void {
    this.#poll.change(this.#members.indexOf(member), events)
  }

  /** A promise or a callback is to have its turn now, before anything is waited for. */
  yield(): void {
    this.#yields = true
  }

  /** Lets go of a connection, if it has it, without a word. */
  drop(member: BusyMember): void {
    const index = this.#members.indexOf(member)
    if (index < 0) return
    this.#poll.remove(index)
    const last = this.#members.pop()!
    const lastSeenMs = this.#seenMs.pop()!
    if (last === member) return
    this.#members[index] = last
    this.#seenMs[index] = lastSeenMs
  }

  #run(): void {
    this.#nowMs = performance.now()
    const untilMs = this.#nowMs + TURN_MS
    while (this.#members.length > 0 && this.#nowMs < untilMs) {
      const served = this.#members.length <= TRIED_MEMBERS_MAX && this.#try()
      const count = this.#members.length
      if (count === 0 || this.#yields) break
      this.#poll.add(this.#eventLoopFd!, POLLIN)
      const ready = this.#poll.wait(served ? 0 : WAIT_MS)
      const wanted = this.#poll.seen(count) !== 0
      this.#poll.remove(count)
      this.#nowMs = performance.now()
      if (ready > 0) this.#serve()
      if (wanted || this.#yields) break
    }
    this.#giveBackSilent()
  }

  /** A client that waits for each answer sends its next request sooner than this thread could fall asleep and be woken. @returns true if one was served */
  #try(): boolean {
    if (!this.#members.some((member) => member.expectsMore) || (this.#credit <= 0 && ++this.#credit <= 0)) return false
    let served = 0
    for (let tries = 0, next = 0; tries < TRIES_MAX && served < SERVED_MAX && !this.#yields && this.#members.length > 0; tries++) {
      const index = next++ % this.#members.length
      const member = this.#members[index]
      const answer = member.tryReceive()
      if (answer === undefined) continue
      served++
      tries = -1
      if (!answer) this.#giveBack(member)
      else if (this.#members[index] === member) this.#seenMs[index] = this.#nowMs
    }
    if (served > 0) {
      this.#credit = Math.min(CREDIT_MAX, this.#credit + 1)
      this.#nowMs = performance.now()
    } else if (--this.#credit === 0) this.#credit = CREDIT_RETRY
    return served > 0
  }

  /** From the last one: whoever leaves has its place taken by one that had its turn. */
  #serve(): void {
    for (let index = this.#members.length - 1; index >= 0; index--) {
      const events = this.#poll.seen(index)
      if (events === 0) continue
      // Whoever is served may end others.
      const member = this.#members.at(index)
      if (member === undefined) continue
      this.#seenMs[index] = this.#nowMs
      if (!member.ready(events)) this.#giveBack(member)
    }
  }

  #giveBackSilent(): void {
    for (let index = this.#members.length - 1; index >= 0; index--) {
      if (index < this.#members.length && this.#nowMs - this.#seenMs[index] > SILENT_MS) this.#giveBack(this.#members[index])
    }
  }

  #giveBack(member: BusyMember): void {
    this.drop(member)
    member.givenBack()
  }
}
