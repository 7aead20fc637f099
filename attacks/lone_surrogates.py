"""Half of a surrogate pair, which JSON can spell and UTF-8 can't hold: a text that can't be written again."""

from forge import described, show

for version in (1, 2):
    show(described(version=version, labels={"note": "\ud83d"}))
    show(described(version=version, labels={"\ud83d": "note"}))
