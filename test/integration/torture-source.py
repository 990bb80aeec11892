"""Writes the directory whose entries torture-source.ts sends, a line of JSON each, parents first."""
import base64
import errno
import json
import os
import resource
import sys

REFUSED = (errno.ENOSPC, errno.E2BIG, errno.EOPNOTSUPP, errno.EDQUOT)


class Writer:
    def __init__(self, root):
        # Directories that still wait for their entries are kept open: their paths may be longer than a call takes.
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        self.root = root
        # Number of an entry to its open directory, what it is, and how many names it still lacks.
        self.directories = {}
        # Inodes that get more names.
        self.linked = {}
        self.count = 0
        self.xattrs = 0
        self.refused = 0

    def add(self, entry):
        number = self.count
        self.count += 1
        if number == 0:
            os.mkdir(self.root)
            self.open_directory(number, os.open(self.root, os.O_RDONLY | os.O_DIRECTORY), entry)
            return
        parent = self.directories[entry['parent']]
        fd = parent[0]
        name = entry['name'].encode('latin1')
        if entry['inode'] in self.linked:
            os.link(b'/proc/self/fd/%d' % self.linked[entry['inode']], name, dst_dir_fd=fd, follow_symlinks=True)
        elif entry['directory']:
            os.mkdir(name, dir_fd=fd)
            self.open_directory(number, os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd), entry)
        else:
            self.make(fd, name, entry)
            self.finish(fd, name, entry)
            if entry['linked']:
                self.linked[entry['inode']] = os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=fd)
        parent[2] -= 1
        if parent[2] == 0:
            self.close_directory(entry['parent'])

    def open_directory(self, number, fd, entry):
        self.directories[number] = [fd, entry, entry['children']]
        if entry['children'] == 0:
            self.close_directory(number)

    def close_directory(self, number):
        fd, entry, _ = self.directories.pop(number)
        self.finish(fd, b'.', entry)
        os.close(fd)

    def make(self, fd, name, entry):
        if 'target' in entry:
            os.symlink(entry['target'].encode('latin1'), name, dir_fd=fd)
        elif 'type' in entry:
            os.mknod(name, entry['type'] | 0o600, os.makedev(*entry['device']), dir_fd=fd)
        else:
            file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=fd)
            offset = 0
            for piece in entry['pieces']:
                if isinstance(piece, str):
                    piece = base64.b64decode(piece)
                    os.pwrite(file, piece, offset)
                    offset += len(piece)
                else:
                    offset += piece
            if offset > 0:
                os.ftruncate(file, offset)
            os.close(file)

    def finish(self, fd, name, entry):
        """In this order: a new owner clears setuid and capabilities, and anything changes the time."""
        at = {'dir_fd': fd, 'follow_symlinks': False}
        os.chown(name, *entry['owner'], **at)
        if 'target' not in entry:
            os.chmod(name, entry['mode'], dir_fd=fd)
        path = b'/proc/self/fd/%d/%s' % (fd, name)
        for attribute, value in entry['xattrs']:
            self.xattrs += 1
            try:
                os.setxattr(path, attribute.encode('latin1'), base64.b64decode(value), follow_symlinks=False)
            except OSError as error:
                if error.errno not in REFUSED:
                    raise
                self.refused += 1
        seconds, nanoseconds = entry['time']
        time = seconds * 1_000_000_000 + nanoseconds
        os.utime(name, ns=(time, time), **at)


writer = Writer(os.fsencode(sys.argv[1]))
for line in sys.stdin:
    writer.add(json.loads(line))
if writer.directories:
    sys.exit('directories lack entries: %r' % list(writer.directories)[:10])
print(json.dumps({'entries': writer.count, 'xattrs': writer.xattrs, 'xattrsRefused': writer.refused}))
