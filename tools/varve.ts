/**
 * The varve command of a checkout, started by the script beside it.
 */
import { checkoutProgram } from './checkout-program.ts'

await import(await checkoutProgram())
