"""A field that a later release may need a reader to understand: to ignore it would be silently wrong."""

from forge import described, show

show(described(gate=[0.5, 0.5]))
show(described(gate=[0.5, 0.5], optional=["other"]))
