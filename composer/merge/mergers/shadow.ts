/** shadow(5). The last layer that has a name gives its line. */
import { accountMerger } from './account-file.ts'

export const shadow = accountMerger({ name: 'shadow', path: 'etc/shadow', fields: 9, ids: [], lists: [] })
