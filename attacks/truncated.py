"""A file that was cut: within the length, the header and the tensors."""

from forge import good_file, show

content = good_file()
for length in (0, 5, 8, 100, len(content) - 1):
    show(content[:length])
