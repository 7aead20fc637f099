"""Tensors of other names, one stream's keys alone, shapes without virtual tokens."""

from forge import assemble, good_file, parts, show

header, description, data = parts(good_file())
key, value = header["decoder.key"], header["decoder.value"]
show(assemble({}, description, b""))
show(assemble({"decoder.key": key}, description, data[:96]))
show(assemble({"decoder.key": key, "decoder.values": value}, description, data))
show(assemble({"decoder.key": key, "lora.A": value}, description, data))
for shape in ([2, 1, 0, 4], [24], [], [2, 1, 3, 4, 1]):
    width = 4
    for size in shape:
        width *= size
    both = {
        "decoder.key": {**key, "shape": shape, "data_offsets": [0, width]},
        "decoder.value": {**value, "shape": shape, "data_offsets": [width, 2 * width]},
    }
    show(assemble(both, description, data[: 2 * width]))
