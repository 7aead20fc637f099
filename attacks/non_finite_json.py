"""NaN and infinity in the description, which Python's json reads and other readers don't."""

import json

from forge import assemble, good_file, parts, show

header, description, data = parts(good_file())
text = json.dumps({**description, "report": {"harm": 0}})
for number in ("NaN", "-Infinity", "1e999"):
    show(assemble(header, text.replace('"harm": 0', f'"harm": {number}'), data))
