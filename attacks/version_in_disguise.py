"""Versions that Python holds equal to 1 or 2 and that are not: true, 1.0, text; and one that is to come."""

from forge import described, show

for version in (True, 1.0, 2.0, "2", None, 0, -1, 3, [2]):
    show(described(version=version))
