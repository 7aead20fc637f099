"""Other content behind the tensors: two files in one, of which each reader sees another."""

from forge import good_file, show

show(good_file() + b"PK\x03\x04")
