"""Compares two directories, entry by entry, and prints as JSON what differs in the second."""
import errno
import hashlib
import json
import os
import resource
import stat
import sys

DIFFERENCES_MAX = 50
BUFFER_BYTES = 1 << 20
# Blocks of 512 bytes that a filesystem may spend on where a file's data are: some for each run of data, and for attributes.
EXTRA_BLOCKS = 64


class Judge:
    def __init__(self):
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        self.differences = []
        self.count = 0
        self.kinds = {}
        self.xattrs = 0
        self.data_bytes = 0
        self.data_runs = 0
        # Inode of the one side to that of the other, both ways.
        self.inodes = ({}, {})

    def differ(self, path, what, ours, theirs):
        if len(self.differences) < DIFFERENCES_MAX:
            shown = path if len(path) < 200 else path[:90] + '...' + path[-90:]
            self.differences.append('%r: %s is %.300r instead of %.300r' % (shown, what, theirs, ours))

    def run(self, source, image):
        fds = tuple(os.open(directory, os.O_RDONLY | os.O_DIRECTORY) for directory in (source, image))
        self.entry(fds, '.', '.', extra_links=1)
        # Directories are kept open on the way down, since paths may be longer than a call takes.
        stack = [self.directory(fds, '', allowed={'lost+found'})]
        while stack:
            fds, path, pending = stack[-1]
            if not pending:
                for fd in fds:
                    os.close(fd)
                stack.pop()
                continue
            name = pending.pop()
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
            below = tuple(os.open(name, flags, dir_fd=fd) for fd in fds)
            stack.append(self.directory(below, path + '/' + name))

    def directory(self, fds, path, allowed=frozenset()):
        """Compares what is in a directory. Returns it with the directories in it."""
        lists = [os.listdir(fd) for fd in fds]
        ours, theirs = map(set, lists)
        for names in lists:
            if len(names) != len(set(names)):
                self.differ(path, 'a name', 'listed once', 'listed twice')
        for name in ours - theirs:
            self.differ(path + '/' + name, 'it', 'there', 'missing')
        for name in theirs - ours - allowed:
            self.differ(path + '/' + name, 'it', 'absent', 'there')
        pending = [name for name in sorted(ours & theirs) if self.entry(fds, name, path + '/' + name)]
        return fds, path, pending

    def entry(self, fds, name, path, extra_links=0):
        """Compares one entry. Returns true if both are directories."""
        self.count += 1
        ours, theirs = (os.stat(name, dir_fd=fd, follow_symlinks=False) for fd in fds)

        def check(what, mine, other):
            if mine != other:
                self.differ(path, what, mine, other)

        check('mode', oct(ours.st_mode), oct(theirs.st_mode))
        check('uid', ours.st_uid, theirs.st_uid)
        check('gid', ours.st_gid, theirs.st_gid)
        check('mtime', ours.st_mtime_ns, theirs.st_mtime_ns)
        # A filesystem that does not count the links of directories says 1.
        if not (stat.S_ISDIR(theirs.st_mode) and theirs.st_nlink == 1):
            check('link count', ours.st_nlink + extra_links, theirs.st_nlink)
        check('inode of the same name in the image', self.inodes[0].setdefault(ours.st_ino, theirs.st_ino), theirs.st_ino)
        check('inode of the same name in the source', self.inodes[1].setdefault(theirs.st_ino, ours.st_ino), ours.st_ino)
        kind = stat.filemode(ours.st_mode)[0]
        self.kinds[kind] = self.kinds.get(kind, 0) + 1
        if stat.S_IFMT(ours.st_mode) != stat.S_IFMT(theirs.st_mode):
            return False
        attributes = [self.attributes(fd, name) for fd in fds]
        self.xattrs += len(attributes[0])
        for key in attributes[0].keys() | attributes[1].keys():
            check('attribute ' + key, attributes[0].get(key), attributes[1].get(key))
        if kind in 'bc':
            check('device', ours.st_rdev, theirs.st_rdev)
        if kind == 'l':
            check('size', ours.st_size, theirs.st_size)
            check('target', *(os.readlink(name, dir_fd=fd) for fd in fds))
        if kind == '-':
            check('size', ours.st_size, theirs.st_size)
            if ours.st_size == theirs.st_size and ours.st_size > 0:
                self.content(fds, name, path, (ours, theirs))
        return kind == 'd'

    def attributes(self, fd, name):
        path = '/proc/self/fd/%d/%s' % (fd, name)
        names = os.listxattr(path, follow_symlinks=False)
        return {key: os.getxattr(path, key, follow_symlinks=False) for key in names}

    def content(self, fds, name, path, stats):
        files = [os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=fd) for fd in fds]
        try:
            ours, theirs = (data_runs(file, st.st_size) for file, st in zip(files, stats))
            if ours != theirs:
                self.differ(path, 'the map of its data', ours, theirs)
            self.data_runs += len(ours)
            # What is data on either side; a hole reads as zeroes.
            for runs in (ours,) if ours == theirs else (ours, theirs):
                digests = [digest(file, runs) for file in files]
                if digests[0] != digests[1]:
                    self.differ(path, 'content', digests[0], digests[1])
            self.data_bytes += sum(end - start for start, end in ours)
            if stats[1].st_blocks > stats[0].st_blocks + EXTRA_BLOCKS:
                # The kernel counts the blocks of an extent tree only when it has written the file back.
                os.fsync(files[0])
                blocks = [os.fstat(file).st_blocks for file in files]
                if blocks[1] > blocks[0] + EXTRA_BLOCKS:
                    self.differ(path, 'allocation in blocks', *blocks)
        finally:
            for file in files:
                os.close(file)


def data_runs(file, size):
    runs = []
    at = 0
    while at < size:
        try:
            start = os.lseek(file, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                break
            raise
        at = os.lseek(file, start, os.SEEK_HOLE)
        runs.append((start, at))
    return runs


def digest(file, runs):
    total = hashlib.sha256()
    for start, end in runs:
        at = start
        while at < end:
            part = os.pread(file, min(BUFFER_BYTES, end - at), at)
            if not part:
                return 'ends at %d' % at
            total.update(part)
            at += len(part)
    return total.hexdigest()


judge = Judge()
judge.run(sys.argv[1], sys.argv[2])
print(json.dumps({
    'differences': judge.differences,
    'entries': judge.count,
    'kinds': judge.kinds,
    'xattrs': judge.xattrs,
    'dataBytes': judge.data_bytes,
    'dataRuns': judge.data_runs,
}))
