"""How a base model is loaded: class, attention kernel, device, data type and quantization.

Quantization keeps frozen linear layers with their weights in 8 or 4 bits, by bitsandbytes. A prefix is
trained through a frozen model, so that model's weights need no gradient and may be rounded once, when they
are loaded. What a layer computes with is the model's data type. Embeddings, norms and the output head stay
as they are. Prefixes do not notice; what has to be minded all the same is here.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BitsAndBytesConfig,
    GenerationConfig,
)
from transformers.utils import is_bitsandbytes_available

from foreword.base.attention import IMPLEMENTATIONS, Kernel
from foreword.base.rope import take_long_factors
from foreword.errors import UnsupportedArchitecture, UsageError

Quantization = Literal["int8", "nf4"]


def load_model(
    folder: Path,
    device: str | torch.device,
    dtype: torch.dtype,
    *,
    attention: Kernel | Literal["auto"] = "auto",
    quantization: Quantization | None = None,
    long_context: bool = False,
) -> Any:
    """The transformers model in a folder, its attention through Foreword's function; see `BaseModel.load`.

    Args:
        device, dtype: as `choose_device` and `choose_dtype` have them.

    Raises:
        UsageError: files of a quantisation whose library is not installed; see `loading_options` and
            `take_long_factors`, too.
        UnsupportedArchitecture: it does not take Foreword's attention.
    """
    config, auto = _config_of(folder, long_context)
    options = {"device_map": "balanced"} if device == "balanced" else {}
    options |= loading_options(quantization, config, device, dtype)
    kernel = choose_kernel(config, model_class(auto, config)) if attention == "auto" else attention
    try:
        model = auto.from_pretrained(
            folder,
            config=config,
            attn_implementation=IMPLEMENTATIONS[kernel],
            dtype=dtype,
            use_safetensors=True,
            **options,
        )
    except (ValueError, KeyError) as error:  # a KeyError from models that choose classes by that name
        ours = IMPLEMENTATIONS[kernel] in str(error) or "attn" in str(error)
        if not ours and "Unrecognized configuration" not in str(error):
            raise
        raise UnsupportedArchitecture(
            f"{folder.name} (model type {config.model_type}) does not take Foreword's attention: {error}"
        ) from error
    except ImportError as error:
        if (found := existing_quantization(config)) is None:
            raise
        raise UsageError(
            f"the files of {folder.name} are quantised ({found}), and what reads them is not installed: "
            f"{error}. Install it, or take the plain weights; vLLM serves such files, too "
            "(docs/quantization.md)"
        ) from error
    return model if "device_map" in options else model.to(device)


def empty_model(folder: Path, *, long_context: bool = False) -> Any:
    """The model in a folder without its weights, on the meta device, in bfloat16. Raises as `load_model`."""
    config, auto = _config_of(folder, long_context)
    kernel = choose_kernel(config, model_class(auto, config))
    with torch.device("meta"):
        # bfloat16 is what products of experts are known for there; whoever wants another type converts it.
        model = auto.from_config(config, attn_implementation=IMPLEMENTATIONS[kernel], dtype=torch.bfloat16)
    if (folder / "generation_config.json").is_file():  # tokens that end a text
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model


def _config_of(folder: Path, long_context: bool) -> tuple[Any, Any]:
    """A folder's configuration, and transformers' automatic class for its kind of model."""
    config = AutoConfig.from_pretrained(folder)
    if long_context:
        take_long_factors(config)
    return config, AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM


def choose_kernel(config: Any, model_class: Any) -> Kernel:
    """SDPA, unless the architecture does something to the attention weights that SDPA can't."""
    text = config.get_text_config(decoder=True)
    soft_capped = getattr(text, "attn_logit_softcapping", None) is not None
    supported = getattr(model_class, "_supports_sdpa", False)
    return "sdpa" if supported and not soft_capped else "eager"


def use_kernel(model: Any, kernel: Kernel) -> None:
    """Let a loaded model do its attention through Foreword's function for `kernel`."""
    with contextlib.suppress(ValueError):  # refused by models without the interface; the probe tells
        model.set_attn_implementation(IMPLEMENTATIONS[kernel])
    # T5's encoder and decoder keep copies of the config that the call above does not reach.
    for module in model.modules():
        if hasattr(module, "config") and hasattr(module.config, "_attn_implementation"):
            module.config._attn_implementation = IMPLEMENTATIONS[kernel]


def model_class(auto: Any, config: Any) -> Any:
    """The class that transformers' `auto` takes for `config`.

    Raises:
        UnsupportedArchitecture: it has none.
    """
    try:
        return auto._model_mapping[type(config)]
    except KeyError as error:
        raise UnsupportedArchitecture(
            f"transformers has no language model for model type {config.model_type!r}; Foreword needs a "
            "decoder-only or an encoder-decoder language model"
        ) from error


def choose_device(device: str | torch.device) -> str | torch.device:
    """The device that was asked for; for "auto" CUDA or MPS where there is one, else the CPU.

    Raises:
        UsageError: a name that is none.
    """
    if device != "auto":
        _kind(device)
        return device
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def check_present(device: str | torch.device) -> None:
    """Refuse a device that torch does not have here.

    Raises:
        UsageError: says which.
    """
    absent = {"cuda": not torch.cuda.is_available(), "mps": not torch.backends.mps.is_available()}
    if absent.get(_kind(device), False):
        raise UsageError(
            f"device is {device}, but torch {torch.__version__} sees no such device here; take cpu, or "
            "install a build of torch for it"
        )


def _kind(device: str | torch.device) -> str:
    try:
        return "cuda" if device == "balanced" else torch.device(device).type
    except RuntimeError as error:
        raise UsageError(
            f"device is {device!r}; expected auto, cpu, cuda, cuda:1, mps or balanced"
        ) from error


def choose_dtype(dtype: str | torch.dtype, device: str | torch.device) -> torch.dtype:
    """The data type that was asked for; for "auto" bfloat16 on GPUs that compute it, else float32.

    Raises:
        UsageError: a name that is none, or a type that the device does not have.
    """
    if dtype != "auto":
        named = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
        if not isinstance(named, torch.dtype) or not named.is_floating_point or named.itemsize < 2:
            raise UsageError(f"dtype is {dtype!r}; expected auto, float32, bfloat16 or float16")
        if named == torch.float64 and str(device).startswith("mps"):
            raise UsageError("dtype is float64, which MPS does not have; take float32 or another device")
        return named
    if str(device).startswith(("cuda", "balanced")):
        return torch.bfloat16 if _computes_bfloat16(str(device)) else torch.float32
    # Not even where a CPU computes bfloat16 fast: what is promised of rows and batches (same losses,
    # same tokens) holds to 1e-5 in float32 only. Whoever prefers speed asks for it.
    return torch.float32


def _computes_bfloat16(device: str) -> bool:
    """Whether a GPU, or each of several, has bfloat16 in hardware; older ones emulate it."""
    index = torch.device("cuda" if device == "balanced" else device).index
    every = range(torch.cuda.device_count()) if device == "balanced" else [index]
    answers = []
    for each in every:
        with torch.cuda.device(each):  # torch answers for the current one
            answers.append(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(answers) and all(answers)


def vocabulary(model: Any) -> int:
    """Rows of the input embedding, V."""
    embedding = model.get_input_embeddings()
    return int(getattr(embedding, "num_embeddings", None) or embedding.weight.shape[0])


def wraps_targets(model: Any) -> bool:
    """Whether an encoder-decoder's training in transformers moves a target's last token to its front.

    mBART's kind does: the last token is that of the language, which the decoder begins with.
    """
    if not hasattr(model, "prepare_decoder_input_ids_from_labels"):
        return False
    labels_1T = torch.tensor([[5, 6, 7]])
    try:
        shifted_1T = model.prepare_decoder_input_ids_from_labels(labels=labels_1T)
    except ValueError:  # the config names no padding or start token, which such training needs
        return False
    return torch.equal(shifted_1T, torch.tensor([[7, 5, 6]]))


def check_vocabulary(model: Any, tokenizer: Any, name: str) -> None:
    """Refuse a tokenizer that makes ids of ordinary text for which the model has no embedding.

    Added tokens beyond it are common (Gemma 3 has one for images, which its text models lack) and do no harm
    until a text has one of them: `BaseModel.check_ids`.

    Raises:
        UsageError: says both numbers.
    """
    rows = vocabulary(model)
    if len(tokenizer) <= rows:
        return
    beyond = {i for i in tokenizer.get_vocab().values() if i >= rows} - set(tokenizer.added_tokens_decoder)
    if beyond:
        raise UsageError(
            f"the tokenizer of {name} has {len(tokenizer)} tokens, the model embeddings for {rows}: "
            f"{len(beyond)} ordinary tokens have none. Take the tokenizer that the model was trained with, "
            "or resize the model's embeddings (resize_token_embeddings) and save it"
        )


DEVICES = ("cuda", "cpu", "balanced")
"""Where quantised layers are taken to work; `balanced` is several CUDA devices."""


def loading_options(
    quantization: str | None, config: Any, device: str | torch.device, dtype: torch.dtype
) -> dict[str, Any]:
    """Options of transformers' `from_pretrained` where the model is to be quantised or its files are.

    With these the weights are put on their device while they are rounded, and can't be moved afterwards.

    Args:
        quantization: what was asked for, checked; None for nothing.
        config: of the base model.
        device: as `choose_device` has it.
        dtype: what layers compute with.

    Raises:
        UsageError: it was asked for, but the files are quantised already.
    """
    placed = {"device_map": str(device)}
    if quantization is None:
        return placed if existing_quantization(config) else {}
    logging.getLogger("bitsandbytes.backends").setLevel(logging.ERROR)  # which kernels it could also have
    if found := existing_quantization(config):
        raise UsageError(
            f"quantization is {quantization}, but the base model's files are quantised already ({found}); "
            "leave it out, or take the files in full precision"
        )
    return placed | {"quantization_config": BitsAndBytesConfig(**settings_of(quantization, dtype))}


def check(quantization: str, device: str | torch.device) -> None:
    """Refuse what can't work, before anything slow.

    Raises:
        UsageError: an unknown name, a device that can't, or a package that is absent.
    """
    if quantization not in get_args(Quantization):
        raise UsageError(
            f"quantization is {quantization!r}; expected {' or '.join(get_args(Quantization))}, or None"
        )
    if str(device).split(":")[0] not in DEVICES:
        raise UsageError(
            f"quantization is {quantization}, but the device is {device}; quantised base models run on CUDA "
            "and on the CPU. Leave quantization out, or take another device"
        )
    if not is_bitsandbytes_available():
        raise UsageError(
            f"quantization {quantization} needs bitsandbytes, which is not installed or too old; install it "
            "with: pip install 'foreword[quantization]'"
        )


def settings_of(quantization: str, dtype: torch.dtype) -> dict[str, Any]:
    """What `BitsAndBytesConfig` is made of."""
    if quantization == "int8":
        return {"load_in_8bit": True}
    return {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,  # scales in 8 bits: 4.13 bits a weight instead of 4.5 (QLoRA)
        "bnb_4bit_compute_dtype": dtype,
    }


def existing_quantization(config: Any) -> str | None:
    """How a model with this configuration keeps its linear layers' weights; None: as plain numbers."""
    declared = getattr(config, "quantization_config", None)
    if declared is None:
        return None
    options = declared if isinstance(declared, dict) else declared.to_dict()
    if options.get("load_in_8bit"):
        return "int8"
    if options.get("load_in_4bit"):
        return str(options.get("bnb_4bit_quant_type"))
    return str(options.get("quant_method") or "quantised")


def prepare_quantized(model: Any) -> None:
    """Let quantised layers pass gradients on and keep rows apart; nothing is done to other models.

    bitsandbytes lays 4-bit weights out anew at the first pass without a gradient on a CPU with AVX-512 BF16.
    Products with that layout have no gradient, which would then never reach a prefix, without an error.
    """
    kept = existing_quantization(model.config)
    if kept == "int8":
        from foreword.base.int8_linear import use_rounded_linear  # needs bitsandbytes

        use_rounded_linear(model)
    elif kept is not None:
        for module in model.modules():
            if hasattr(module, "support_avx512bf16_for_cpu"):
                module.support_avx512bf16_for_cpu = False


def tensors_of(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Everything that the weights of `model` are kept as: of quantised layers the scales, too."""
    if existing_quantization(model.config) is None:
        yield from model.named_parameters()
    else:
        yield from ((name, tensor) for name, tensor in model.state_dict().items() if torch.is_tensor(tensor))


def check_trainable(base: Any, method: str) -> None:
    """Refuse to train the weights of a quantised base model.

    Raises:
        UsageError: it is quantised.
    """
    if base.quantization is not None:
        raise UsageError(
            f"{method} trains weights, but those of {base.name} are quantised ({base.quantization}) and take "
            "no gradient; leave the method out, or load the base model without quantization"
        )
