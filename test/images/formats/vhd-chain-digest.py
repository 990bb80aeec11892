"""Size and SHA-256 of the disk in a VHD image: sector by sector, as the specification's formulas have it, through all parents. Slow, and shares nothing with the reader it judges."""
import hashlib
import os
import struct
import sys


class Vhd:
    def __init__(self, path):
        with open(path, 'rb') as file:
            self.bytes = file.read()
        footer = self.bytes[-512:]
        assert footer[:8] == b'conectix', path
        self.size, kind = struct.unpack('>Q', footer[48:56])[0], struct.unpack('>I', footer[60:64])[0]
        self.parent = None
        if kind == 2:
            self.entries = None
            return
        header_at, = struct.unpack('>Q', footer[16:24])
        header = self.bytes[header_at:header_at + 1024]
        assert header[:8] == b'cxsparse', path
        table_at, version, count, self.block = struct.unpack('>QIII', header[16:36])
        self.entries = struct.unpack('>%dI' % count, self.bytes[table_at:table_at + 4 * count])
        if kind == 4:
            code, space, length, reserved, at = struct.unpack('>4sIIIQ', header[576:600])
            assert code == b'W2ru' and space * 512 >= length
            name = self.bytes[at:at + length].decode('utf-16-le').replace('\\', '/')
            self.parent = Vhd(os.path.join(os.path.dirname(path), name))
            assert self.parent.bytes[-512:][68:84] == header[40:56], 'the parent has another id'

    def sector(self, number):
        if self.entries is None:
            return self.bytes[512 * number:512 * number + 512]
        per_block = self.block // 512
        entry, within = self.entries[number // per_block], number % per_block
        if entry != 0xffffffff and self.bytes[512 * entry + within // 8] & (0x80 >> within % 8):
            bitmap_sectors = (per_block // 8 + 511) // 512
            at = 512 * (entry + bitmap_sectors + within)
            return self.bytes[at:at + 512]
        return self.parent.sector(number) if self.parent else bytes(512)


disk = Vhd(sys.argv[1])
digest = hashlib.sha256()
for number in range(disk.size // 512):
    digest.update(disk.sector(number))
print(disk.size, digest.hexdigest())
