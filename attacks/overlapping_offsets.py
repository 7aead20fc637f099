"""Keys and values that are the same bytes: a short file seems to hold two tensors."""

from forge import listed, show

show(listed(decoder_value={"data_offsets": [0, 96]}))
