"""Whole numbers, 8-bit floats, complex numbers, types that do not exist, one that the description denies."""

from forge import assemble, good_file, parts, show

header, description, data = parts(good_file())
for dtype, name, width in (
    ("I32", "int32", 4),
    ("F8_E4M3", "float8_e4m3fn", 1),
    ("C64", "complex64", 8),
    ("BOOL", "bool", 1),
    ("F4", "float4", 4),
    ("F128", "float128", 4),
    ("F32", "bfloat16", 4),
):
    size = 24 * width
    for part, begin in (("key", 0), ("value", size)):
        entry = {"dtype": dtype, "shape": [2, 1, 3, 4], "data_offsets": [begin, begin + size]}
        header[f"decoder.{part}"] = entry
    for version in (1, 2):
        if (version, dtype) != (1, "F32"):  # version 1 did not compare the description's type
            show(assemble(header, {**description, "version": version, "dtype": name}, (data * 2)[: 2 * size]))
