/** All mergers; two never claim the same path. */
import { dpkgStatus } from './dpkg-status.ts'
import { group } from './group.ts'
import { gshadow } from './gshadow.ts'
import type { Merger } from './merger.ts'
import { passwd } from './passwd.ts'
import { shadow } from './shadow.ts'
import { subid } from './subid.ts'

export const MERGERS: readonly Merger[] = [passwd, group, shadow, gshadow, subid, dpkgStatus]
