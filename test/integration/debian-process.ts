/** Builds a Debian in the directory that is named, beside whatever else runs. */
import { buildDebian } from './debian-layers.ts'

buildDebian(process.argv[2])
