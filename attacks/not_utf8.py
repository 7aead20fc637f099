"""A header in another encoding: Python's json guesses UTF-16, other readers don't."""

import struct

from forge import good_file, parts, show

header, _, data = parts(good_file())
for encoded in (b'{"a\xff":1}', '{"a":1}'.encode("utf-16-le"), b'\xef\xbb\xbf{"a":1}'):
    show(struct.pack("<Q", len(encoded)) + encoded + data)
