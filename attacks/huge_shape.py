"""A shape whose product overflows 64 bits, so that it seems to need no bytes."""

from forge import listed, show

show(listed(decoder_key={"shape": [2**32, 2**32, 1, 1]}))
show(listed(decoder_key={"shape": [2**62, 1, 3, 4]}))
