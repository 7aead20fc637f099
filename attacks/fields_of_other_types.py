"""Every field of the description as something else than it should be, and the metadata itself."""

from forge import assemble, described, good_file, parts, show

header, description, data = parts(good_file())
for name in sorted(description):
    for value in (5, [], "x", {"x": {"y": []}}, None, True):
        if (name, value) not in (("licence", None), ("licence", "x"), ("created", "x")):
            show(described(**{name: value}))
for name in ("template_digest", "report", "recipe", "optional"):
    for value in (5, "x", [1], None, True):
        if (name, value) != ("template_digest", None):
            show(described(**{name: value}))
for metadata in (5, [], None, {"foreword": 5}, {"foreword": {}}, {"foreword": "[]"}, {"foreword": "{"}):
    show(assemble({**header, "__metadata__": metadata}, None, data))
