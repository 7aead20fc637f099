"""Bytes between the tensors that no tensor names: a place to hide other content in."""

from forge import assemble, good_file, parts, show

header, description, data = parts(good_file())
header["decoder.value"]["data_offsets"] = [192, 288]
show(assemble(header, description, data[:96] + b"\0" * 96 + data[96:]))
