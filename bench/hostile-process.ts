/**
 * A process of hostile clients, for the benchmark `hostile`: `node hostile-process.ts SOCKET EXPORT SEED CLIENTS`. Attacks until its standard input ends.
 */
import { setPriority } from 'node:os'
import { attackAll } from '../test/blockserver/nbd/hostile-peer.ts'
import { Random } from '../test/random.ts'

const [socketPath, victim, seed, clients] = process.argv.slice(2)
// They are to cost the server its time, not the honest client the processor.
setPriority(19)
let over = false
process.stdin.on('end', () => { over = true }).resume()
process.stdout.write('attacking\n')
console.log(JSON.stringify(await attackAll({ random: new Random(Number(seed)), socketPath, victim, clients: Number(clients), isOver: () => over })))
