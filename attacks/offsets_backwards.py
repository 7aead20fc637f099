"""A tensor that ends before it begins: its length is negative, or huge without a sign."""

from forge import listed, show

show(listed(decoder_key={"data_offsets": [96, 0]}))
