"""A length of 2**64 - 1: added to 8 in 64 bits it is 7, and seems to fit."""

import struct

from forge import good_file, show

show(struct.pack("<Q", 2**64 - 1) + good_file()[8:])
