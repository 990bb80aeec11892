/**
 * Imports a layer in a process of its own: HOME NAME SOURCE. Prints a line when it begins.
 */
import { Home } from '@varve/images/store/home.ts'
import { importLayer } from '@varve/composer/import/import-layer.ts'

const [directory, name, source] = process.argv.slice(2)
process.stdout.write('begins\n')
await using home = await Home.open(directory)
await importLayer({ home, name, kind: 'app', source, workers: 2 })
