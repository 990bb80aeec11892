/** group(5). A name has one gid, a gid one name; members are united. */
import { accountMerger } from './account-file.ts'

export const group = accountMerger({ name: 'group', path: 'etc/group', fields: 4, ids: [{ field: 2, label: 'gid' }], lists: [3] })
