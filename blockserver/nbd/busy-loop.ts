/**
 * Busy loop: connections on which requests follow each other closely are read by the thread itself, which waits in poll(2) and not in the
 * event loop: a request then costs neither its turn nor its bookkeeping. The event loop has a turn every millisecond, and gets the connections
 * back when they fall silent.
 */
import { PollSet } from './socket-calls.ts'

/** Connections of one thread that are read in this way at one time; others are read by the event loop. */
const MEMBERS_MAX = 64
/** How long the event loop waits for its turn while connections are busy; and as long must they be silent to be given back. */
const TURN_MS = 1
/** The same while something else is under way in this thread, which the event loop will tell of. */
const SHARED_TURN_MS = 0.1

/** A connection as the loop sees it. */
export interface BusyMember {
  readonly fd: number
  /** Takes what is there. @returns false if the loop is to let go of the connection */
  receiveNow(): boolean
  /** The event loop reads the connection again. */
  givenBack(): void
}

export class BusyLoop {
  readonly #members: BusyMember[] = []
  readonly #poll = new PollSet(MEMBERS_MAX)
  #scheduled: NodeJS.Immediate | undefined
  /** Requests that the event loop will complete, on any connection of the thread. */
  pendingRequests = 0

  readonly #turn = () => {
    this.#scheduled = undefined
    this.#run()
    if (this.#members.length > 0) this.#scheduled = setImmediate(this.#turn)
  }

  /** @returns false if the loop has no room: the event loop keeps the connection */
  take(member: BusyMember): boolean {
    if (this.#members.length === MEMBERS_MAX) return false
    this.#members.push(member)
    this.#poll.add(member.fd)
    this.#scheduled ??= setImmediate(this.#turn)
    return true
  }

  /** Lets go of a connection, if it has it; it is for the caller to read it in another way. */
  drop(member: BusyMember): void {
    const index = this.#members.indexOf(member)
    if (index < 0) return
    this.#poll.remove(index)
    const last = this.#members.pop()!
    if (last !== member) this.#members[index] = last
  }

  #run(): void {
    const until = performance.now() + (this.pendingRequests > 0 ? SHARED_TURN_MS : TURN_MS)
    while (this.#members.length > 0) {
      const ready = this.#poll.wait(this.pendingRequests > 0 ? 0 : TURN_MS)
      if (ready === 0) {
        this.#giveBackAll()
        return
      }
      // From the last one: whoever leaves has its place taken by one that had its turn.
      for (let index = this.#members.length - 1; index >= 0; index--) {
        // Whoever receives may end others.
        const member = this.#members.at(index)
        if (member === undefined || !this.#poll.isReady(index) || member.receiveNow()) continue
        this.drop(member)
        member.givenBack()
      }
      if (performance.now() >= until) return
    }
  }

  #giveBackAll(): void {
    const members = this.#members.splice(0)
    while (this.#poll.count > 0) this.#poll.remove(this.#poll.count - 1)
    for (const member of members) member.givenBack()
  }
}
