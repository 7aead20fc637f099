"""Offsets that are no numbers: text, true, fractions, numbers beyond 64 bits."""

from forge import listed, show

for offsets in (["0", "96"], [False, 96], [0.0, 96.0], [0, 2**70], [0], {"begin": 0}, None):
    show(listed(decoder_key={"data_offsets": offsets}))
