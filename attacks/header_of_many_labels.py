"""A file of version 2 whose header is within the limit of version 1 and above its own."""

from forge import described, show

show(described(labels={f"label {number}": "x" * 1000 for number in range(64)}))
