"""Size and SHA-256 of the disk that libvhdi finds in a chain of VHD or VHDX images, the lowest first."""
import hashlib
import sys

import pyvhdi

chain = []
for path in sys.argv[1:]:
    image = pyvhdi.file()
    image.open(path)
    if chain:
        image.set_parent(chain[-1])
    chain.append(image)
digest = hashlib.sha256()
size = chain[-1].get_media_size()
for offset in range(0, size, 1 << 20):
    digest.update(chain[-1].read_buffer_at_offset(min(1 << 20, size - offset), offset))
print(size, digest.hexdigest())
