/** gshadow(5). Administrators and members are united. */
import { accountMerger } from './account-file.ts'

export const gshadow = accountMerger({ name: 'gshadow', path: 'etc/gshadow', fields: 4, ids: [], lists: [2, 3] })
