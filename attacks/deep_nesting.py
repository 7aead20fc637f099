"""Brackets in brackets: a parser that calls itself for each runs out of stack."""

from forge import assemble, described, good_file, parts, show

header, description, data = parts(good_file())
nested = "[" * 100_000 + "]" * 100_000
show(assemble('{"a":' + nested + "}", None, data))
show(assemble(header, nested, data))
for version in (1, 2):
    inner: list = []
    for _ in range(400):
        inner = [inner]
    show(described(version=version, recipe={"deep": inner}))
