"""Fields of `base` and `origin` that are not known, missing, or of another type: they become arguments."""

from forge import described, good_file, parts, show

_, description, _ = parts(good_file())
base, origin = description["base"], description["origin"]
for version in (1, 2):
    show(described(version=version, base={**base, "path": "/etc/passwd"}))
    show(described(version=version, base={"revision": None}))
    show(described(version=version, base={**base, "name": ["a-model"]}))
    show(described(version=version, origin={**origin, "self": 1}))
    show(described(version=version, origin={**origin, "steps": "many"}))
    show(described(version=version, origin={**origin, "x" * 60_000: 1}))
