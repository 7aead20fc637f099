"""NaN and infinity among the keys: one of them makes every text of every row NaN."""

import struct

from forge import assemble, good_file, parts, show

header, description, data = parts(good_file())
for value in (float("nan"), float("inf"), float("-inf")):
    show(assemble(header, description, struct.pack("<f", value) + data[4:]))
