"""
A random load by libnbd on several connections to one export, with every command and flag, checked against a model of the disk in memory.
What is in flight together does not overlap; each round goes to connections at random, so what one completes is what the others must see.
Usage: nbd-model.py URI SEED OPERATIONS MODEL, where MODEL is a file that gets what the disk holds, all of it flushed.
"""
import nbd
import random
import sys

uri, seed, operations, model_file = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
CONNECTIONS = 4
IN_FLIGHT = 24
LENGTHS = [1, 511, 512, 4096, 4097, 10_000, 65_536, 65_537, 300_000]
chance = random.Random(seed)


def connect():
    h = nbd.NBD()
    h.add_meta_context("base:allocation")
    # It would refuse DF where it does not look at the chunks.
    h.set_strict_mode(nbd.STRICT_COMMANDS | nbd.STRICT_BOUNDS)
    h.connect_uri(uri)
    assert h.can_multi_conn() and h.can_df() and h.can_fua() and h.can_flush() and h.can_cache() and h.can_fast_zero()
    return h


handles = [connect() for _ in range(CONNECTIONS)]
size = handles[0].get_size()
model = bytearray(b"".join(handles[0].pread(min(1 << 20, size - at), at) for at in range(0, size, 1 << 20)))


def fua():
    return nbd.CMD_FLAG_FUA if chance.random() < 0.1 else 0


class Request:
    """One command on one connection; `check` is called when it is completed."""

    def __init__(self, handle, offset, length):
        self.handle, self.check = handle, lambda: None
        kind = chance.choice(["read", "read", "read", "write", "write", "write", "zero", "trim", "cache", "status", "flush"])
        if kind == "read":
            buffer = nbd.Buffer(length)
            self.cookie = handle.aio_pread(buffer, offset, flags=chance.choice([0, 0, nbd.CMD_FLAG_DF]))
            self.check = lambda: self.same(buffer.to_bytearray(), offset, length)
        elif kind == "write":
            data = chance.randbytes(length)
            self.cookie = handle.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(data)), offset, flags=fua())
            model[offset:offset + length] = data
        elif kind == "zero":
            self.cookie = handle.aio_zero(length, offset, flags=fua() | chance.choice([0, nbd.CMD_FLAG_NO_HOLE, nbd.CMD_FLAG_FAST_ZERO]))
            model[offset:offset + length] = bytes(length)
        elif kind == "trim":
            self.cookie = handle.aio_trim(length, offset, flags=fua())
            model[offset:offset + length] = bytes(length)
        elif kind == "cache":
            self.cookie = handle.aio_cache(length, offset)
        elif kind == "flush":
            self.cookie = handle.aio_flush()
        else:
            one = chance.random() < 0.3
            found = []
            self.cookie = handle.aio_block_status(length, offset, lambda context, at, entries, error: found.extend(entries) or 0, flags=nbd.CMD_FLAG_REQ_ONE if one else 0)
            self.check = lambda: self.extents(found, offset, length, one)

    def same(self, data, offset, length):
        assert data == model[offset:offset + length], f"seed {seed}: {length} bytes at {offset} are not what was written"

    def extents(self, found, offset, length, one):
        lengths, states = found[0::2], found[1::2]
        assert lengths and all(lengths) and (len(lengths) == 1 if one else sum(lengths) == length) and sum(lengths) <= length, f"seed {seed}: extents {found} of {length} bytes at {offset}"
        for count, state in zip(lengths, states):
            assert not state & nbd.STATE_ZERO or not any(model[offset:offset + count]), f"seed {seed}: {count} bytes at {offset} are said to be zeroes"
            offset += count


done = 0
while done < operations:
    requests = []
    at = chance.randrange(size // 8)
    while len(requests) < IN_FLIGHT and at < size:
        length = min(chance.choice(LENGTHS), size - at)
        requests.append(Request(chance.choice(handles), at, length))
        at += length + chance.choice([0, 0, 1, 4096, chance.randrange(size // IN_FLIGHT)])
    done += len(requests)
    while requests:
        waiting = []
        for request in requests:
            if request.handle.aio_command_completed(request.cookie):
                request.check()
            else:
                waiting.append(request)
        requests = waiting
        if requests:
            requests[0].handle.poll(-1)

# A flush on one connection covers what all have completed.
handles[0].flush()
for at in range(0, size, 1 << 20):
    assert handles[-1].pread(min(1 << 20, size - at), at) == model[at:at + (1 << 20)], f"seed {seed}: the disk at the end"
with open(model_file, "wb") as file:
    file.write(model)
for handle in handles:
    handle.shutdown()
