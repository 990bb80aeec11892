"""Size and SHA-256 of the disk that libvmdk or libqcow finds in an image."""
import hashlib
import sys

image_format, path = sys.argv[1:]
if image_format == "vmdk":
    import pyvmdk

    image = pyvmdk.handle()
    image.open(path)
    image.open_extent_data_files()
else:
    import pyqcow

    image = pyqcow.file()
    image.open(path)
digest = hashlib.sha256()
size = image.get_media_size()
for offset in range(0, size, 1 << 20):
    digest.update(image.read_buffer_at_offset(min(1 << 20, size - offset), offset))
print(size, digest.hexdigest())
