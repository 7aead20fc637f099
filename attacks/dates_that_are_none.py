"""A template whose day is none that there is, and times of creation that are no text."""

from forge import described, good_file, parts, show

template = parts(good_file())[1]["template"]
for date in ("2026-02-30", "9999-99-99", "0000-00-00", "now", "", 20261130, ["2026-11-30"]):
    show(described(template={**template, "style": "chat", "date": date}))
for created in (None, 0, 1e18, ["2026-11-30"], {"year": 2026}):
    show(described(created=created))
