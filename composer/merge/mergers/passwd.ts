/** passwd(5). A name has one uid and gid, a uid one name; password, gecos, home and shell come from the last layer. */
import { accountMerger } from './account-file.ts'

export const passwd = accountMerger({
  name: 'passwd',
  path: 'etc/passwd',
  fields: 7,
  ids: [
    { field: 2, label: 'uid' },
    { field: 3, label: 'gid' },
  ],
  lists: [],
})
