"""A header of 2 GB, of which the file holds the first bytes: who trusts the length takes the memory."""

import struct

from forge import show

show(struct.pack("<Q", 2 * 1024**3) + b'{"a":' + b" " * 1000)
