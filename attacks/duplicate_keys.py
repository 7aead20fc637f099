"""A key twice in one object: one reader sees the first value, another the last."""

import json

from forge import assemble, good_file, parts, show

header, description, data = parts(good_file())
text = json.dumps(description)
show(assemble(header, '{"version": 1, ' + text[1:], data))
show(assemble(header, text.replace('"labels": {}', '"labels": {"a": "b", "a": "c"}'), data))
whole = json.dumps({**header, "__metadata__": {"foreword": text}})
show(
    assemble(
        '{"decoder.key": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}, ' + whole[1:], None, data
    )
)
