"""A number of 5,000 digits: reading it takes time that grows with the square of its length."""

from forge import assemble, good_file, parts, show

header, description, data = parts(good_file())
for digits in (5_000, 50_000):
    show(assemble(header, '{"version": 2, "report": {"harm": ' + "9" * digits + "}}", data))
