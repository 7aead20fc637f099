"""BaseModel: the frozen transformer, its tokenizer, and what can be asked of it with prefixes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from transformers import AutoTokenizer

from foreword.base.attention import IMPLEMENTATIONS, Kernel
from foreword.base.batch import Batch, Layout, batches_by_length, decoder_batch, encoder_decoder_batch
from foreword.base.compatibility import (
    check_config,
    check_prefix_effect,
    enable_window_shift,
    probe,
    sliding_windows,
)
from foreword.base.hybrid import attention_layers, pads_left
from foreword.base.loading import (
    Quantization,
    check,
    check_present,
    check_vocabulary,
    choose_device,
    choose_dtype,
    choose_kernel,
    empty_model,
    existing_quantization,
    load_model,
    prepare_quantized,
    tensors_of,
    use_kernel,
    vocabulary,
    wraps_targets,
)
from foreword.base.loss import detect_linear_head, not_finite, target_losses
from foreword.base.prefix_batch import WITHIN_WINDOW, PrefixBatch
from foreword.base.prepacked_linear import enable_prepacking
from foreword.base.rope import long_fingerprint, max_positions, short_positions
from foreword.encoding import EncodedExample, encode_example, name_of, naming
from foreword.errors import UsageError, WindowExceeded
from foreword.examples import Example
from foreword.models.fingerprint import fingerprint, fingerprint_of_tensors, former_fingerprint
from foreword.prefix import BaseIdentity, Positions, Prefix
from foreword.template import (
    Template,
    default_template,
    encoder_decoder_template,
    raw_template,
)
from foreword.validation import checks_arguments, deprecated

if TYPE_CHECKING:
    from foreword.base.joining import KeyRotation
    from foreword.base.template_changes import TemplateChanges

PrefixesArgument = Prefix | Sequence[Prefix | Sequence[Prefix] | None] | None
"""One prefix for all rows, or one of each: a prefix, several that are joined (joining.py), or None."""


class BaseModel:
    """A language model of which no code path ever changes a weight.

    Attributes:
        model: the transformers model, in eval mode, no parameter with a gradient.
        geometry: sizes a prefix must have, as the attention calls of the model show them.
        name: alias, hub id or folder name.
        revision: commit on the hub, where known.
        template: what training uses when nothing else is said.
        raw_template: text as it is, with the tokenizer's own special tokens and nothing else around it.
        positions: of the prefixes that are trained for it; see `Prefix.positions`.
        quantization: how its linear layers are kept, such as "nf4"; None: in `dtype`.
        long_context: its configuration has LongRoPE's long factors for every text.
        equivalent: fingerprints of other bases whose prefixes run on this one, too. At first only what
            earlier releases took for its own; add those that a store's records declare:
            `base.equivalent |= store.equivalents(base.fingerprint)` (docs/quantization.md).
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        name: str,
        revision: str | None = None,
        folder: Path | None = None,
        long_context: bool = False,
    ) -> None:
        """Freeze a loaded transformers model; `load` is the usual way in.

        Args:
            folder: where its weight files are, so that the fingerprint can be read from them.
            long_context: it was made of a configuration that `rope.take_long_factors` has changed.

        Raises:
            UnsupportedArchitecture: its attention does not take a prefix.
            UsageError: a tokenizer of a larger vocabulary than the model has embeddings for.
        """
        check_vocabulary(model, tokenizer, name)
        self.model = model.eval().requires_grad_(False)
        self.quantization = existing_quantization(model.config)
        self.tokenizer = tokenizer
        self.name = name
        self.revision = revision
        self._folder = folder
        self.long_context = long_context
        if model.config._attn_implementation not in IMPLEMENTATIONS.values():
            use_kernel(model, choose_kernel(model.config, type(model)))
        # Layers that accelerate has offloaded are on the meta device between passes, and have weights.
        empty = all(parameter.is_meta for parameter in model.parameters())
        self._has_weights = has_weights = not empty or hasattr(model, "_hf_hook")
        if has_weights:
            prepare_quantized(self.model)
            enable_prepacking(self.model)
        self.geometry = probe(model)
        check_config(model)
        if has_weights:  # else there is nothing to try, and whoever has them does
            detect_linear_head(model)
            check_prefix_effect(model, positions=self.takes_positions, farthest=self.max_positions)
        windowed = enable_window_shift(model) if has_weights else bool(sliding_windows(model))
        self.positions: Positions = WITHIN_WINDOW if windowed else "text-after-prefix"
        if self.is_encoder_decoder:
            self.template = encoder_decoder_template(tokenizer, wraps=wraps_targets(model))
            self.raw_template = self.template
        else:
            self.template, self.raw_template = default_template(tokenizer), raw_template(tokenizer)

    @classmethod
    @checks_arguments
    def load(
        cls,
        name: str | Path,
        *,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        attention: Kernel | Literal["auto"] = "auto",
        quantization: Quantization | None = None,
        long_context: bool = False,
        notify: Callable[[str], None] | None = None,
    ) -> BaseModel:
        """Load a base model by alias, local folder or Hugging Face id, pulling it when missing.

        Args:
            device: "auto" takes CUDA or MPS where there is one; "balanced" spreads a large model over
                several GPUs (accelerate).
            dtype: "auto" takes bfloat16 on GPUs that compute it, else float32; "bfloat16" asks for it on
                CPUs that have it in hardware (AVX-512 BF16, AMX), too.
            attention: "auto" takes SDPA unless the architecture needs eager (soft caps, sinks).
            quantization: keep the linear layers in 8 bits ("int8") or 4 ("nf4"), computing in `dtype`; the
                fingerprint stays that of the files, so prefixes fit with and without (docs/quantization.md).
            long_context: of a model with LongRoPE (Phi-3-128k, Phi-4-mini): take the long factors for every
                text, and all of its positions. Without, texts end where the short factors do, and every text
                is computed as transformers computes it. Prefixes of the one do not fit the other.
            notify: called with a line of text when something slow begins.

        Raises:
            UsageError: quantization that can't be had (see `foreword.base.loading`), files of one whose
                library is not installed, or `long_context` for a model without LongRoPE.
            UnknownModel, DownloadFailed: see `foreword.models.resolve`.
            UnsupportedArchitecture: its attention does not take a prefix.
        """
        from foreword.models import resolve  # not needed for models that are loaded already

        place = choose_device(device)
        if quantization is not None:
            check(quantization, place)
        check_present(place)
        numbers = choose_dtype(dtype, place)
        resolved = resolve(str(name), notify=notify or (lambda line: None))
        model = load_model(
            resolved.path,
            place,
            numbers,
            attention=attention,
            quantization=quantization,
            long_context=long_context,
        )
        return cls._of_files(model, resolved, long_context)

    @classmethod
    def without_weights(
        cls,
        name: str | Path,
        *,
        dtype: str | torch.dtype = "auto",
        long_context: bool = False,
        notify: Callable[[str], None] | None = None,
    ) -> BaseModel:
        """A base model's tokenizer, sizes and fingerprint, for a process whose engine holds the weights.

        The model stands on the meta device, where nothing is computed: no memory is taken, and its files are
        read for the fingerprint alone. That prefixes have the right effect is not tried.

        Args:
            dtype: what the engine computes in, so that prefixes beyond its range are refused here; "auto",
                where that is not known, takes bfloat16.
            long_context, notify: as for `load`.

        Raises:
            As `load`.
        """
        from foreword.models import resolve

        numbers = torch.bfloat16 if dtype == "auto" else choose_dtype(dtype, "meta")
        resolved = resolve(str(name), notify=notify or (lambda line: None))
        base = cls._of_files(empty_model(resolved.path, long_context=long_context), resolved, long_context)
        base.model.to(numbers)
        return base

    @classmethod
    def _of_files(cls, model: Any, resolved: Any, long_context: bool) -> BaseModel:
        return cls(
            model,
            AutoTokenizer.from_pretrained(resolved.path),
            name=resolved.name,
            revision=resolved.revision,
            folder=resolved.path,
            long_context=long_context,
        )

    # -- what it is ----------------------------------------------------------------------------

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the weights; of a model loaded from files it is read once and remembered.

        With `long_context` another one: the same weights compute something else.
        """
        found = self.weights_checksum() if self._folder is None else fingerprint(self._folder)
        return long_fingerprint(found) if self.long_context else found

    @cached_property
    def equivalent(self) -> frozenset[str]:
        """See the class."""
        former = former_fingerprint(self._folder) if self._folder is not None else None
        if former is None:
            return frozenset()
        return frozenset({long_fingerprint(former) if self.long_context else former})

    def weights_checksum(self) -> str:
        """Digest of the weights as they are in memory now: the same before and after any work."""
        return fingerprint_of_tensors(tensors_of(self.model))

    @property
    def identity(self) -> BaseIdentity:
        """What a prefix file says about its base."""
        return BaseIdentity(self.name, self.revision, self.fingerprint)

    @property
    def shown_name(self) -> str:
        """The name for messages, which other people may read: of a folder's path the last part."""
        return BaseIdentity(self.name).shown_name

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether sources go to an encoder of their own."""
        return bool(self.model.config.is_encoder_decoder)

    @property
    def device(self) -> torch.device:
        """Where token ids go."""
        return self.model.get_input_embeddings().weight.device  # type: ignore[no-any-return]

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the weights."""
        return self.model.dtype  # type: ignore[no-any-return]

    @property
    def max_positions(self) -> int | None:
        """Positions that prefix and text share; None where the architecture sets no limit.

        With LongRoPE as far as the short factors go, so that no text's angles depend on another's length.
        """
        return max_positions(self.model.config)

    @property
    def window_note(self) -> str:
        """What to say behind the name where a text is too long: how it could have more positions."""
        config = self.model.config.get_text_config(decoder=True)
        if (short := short_positions(config)) is None or short >= config.max_position_embeddings:
            return ""
        return (
            f" with the short factors of LongRoPE (the model option long_context takes the long ones, "
            f"{config.max_position_embeddings} positions)"
        )

    @cached_property
    def end_ids(self) -> frozenset[int]:
        """Tokens that end a text, by the model's own generation settings and its tokenizer."""
        declared = self.model.generation_config.eos_token_id if self.model.can_generate() else None
        listed = declared if isinstance(declared, list) else [declared]
        return frozenset(i for i in (*listed, self.tokenizer.eos_token_id) if i is not None)

    @cached_property
    def vocabulary(self) -> int:
        """Token ids that the model has embeddings for, V; a tokenizer can have more added tokens."""
        return vocabulary(self.model)

    def check_ids(self, ids: Sequence[int], what: str) -> None:
        """Refuse token ids that the model has no embedding for, which a tokenizer with added tokens can make.

        Args:
            what: whose they are, for the message.

        Raises:
            UsageError: names the first such token.
        """
        if max(ids, default=0) >= self.vocabulary:
            bad = next(i for i in ids if i >= self.vocabulary)
            token = self.tokenizer.convert_ids_to_tokens(bad) if bad < len(self.tokenizer) else None
            raise UsageError(
                f"{what} has the token {bad}{f' ({token})' if token else ''}, but {self.shown_name} has "
                f"embeddings for {self.vocabulary} tokens, 0 to {self.vocabulary - 1}; leave that token "
                "out of the text"
            )

    @cached_property
    def start_id(self) -> int:
        """The token that an encoder-decoder's decoder begins with."""
        settings = self.model.generation_config
        for token in (self.model.config.decoder_start_token_id, settings.decoder_start_token_id):
            if token is not None:
                return int(token)
        if self.template.start is not None:
            return self.template.start_ids(self.tokenizer, 0)[0]
        raise UsageError(
            f"{self.shown_name} does not say which token its decoder begins with; set "
            "decoder_start_token_id in its config.json (for models of several languages, the token of "
            "the language to write; docs/encoder-decoder.md)"
        )

    @cached_property
    def takes_positions(self) -> bool:
        """Whether the forward pass accepts `position_ids`: then the text starts at P.

        An encoder-decoder's texts start at 0 whatever it accepts: there a prefix moves no text.
        """
        accepted = "position_ids" in inspect.signature(self.model.forward).parameters
        return accepted and not self.is_encoder_decoder

    @cached_property
    def is_hybrid(self) -> bool:
        """Whether some layers keep a state of the text, beside attention or instead of it.

        There a text's own keys and values do not stand for the text.
        """
        return attention_layers(self.model.config) is not None

    @property
    def packs_rows(self) -> bool:
        """Whether rows can stand end to end in one sequence; else they are padded.

        A hybrid's state would run on from row to row; a model without `position_ids` counts them by place.
        """
        return self.takes_positions and not self.is_hybrid

    @cached_property
    def pads_left(self) -> bool:
        """Whether padding in front of a text leaves it as it is; tried on hybrids."""
        return not self.is_hybrid or pads_left(self.model, positions=self.takes_positions)

    @cached_property
    def _template_changes(self) -> TemplateChanges:
        from foreword.base.template_changes import TemplateChanges  # needed where prefixes run alone

        return TemplateChanges(self.tokenizer)

    @cached_property
    def cache_takes_prefixes(self) -> bool:
        """Whether prefixes can be in the cache while generating; it is a question of speed only."""
        from foreword.base.kv_cache import takes_prefixes  # needed by generation alone

        return takes_prefixes(self.model, self.geometry)

    def max_text_tokens(self, length: int) -> int | None:
        """Tokens of text that fit behind a prefix of `length`.

        Raises:
            WindowExceeded: the prefix leaves no room for a source and a target.
        """
        positions = self.max_positions
        if positions is None:
            return None
        # The positions of BART's kind are not moved by a prefix, so there it costs none.
        used = length if self.takes_positions else 0
        if positions - used < 2:
            raise WindowExceeded(
                f"a prefix of length {length} leaves no room for text in the {positions} positions of "
                f"{self.shown_name}{self.window_note}; take a length below {positions - 1}"
            )
        return positions - used

    @property
    def window(self) -> int | None:
        """The old name of `max_positions`."""
        deprecated("BaseModel.window is now called max_positions; the old name goes with the next release")
        return self.max_positions

    def text_limit(self, length: int) -> int | None:
        """The old name of `max_text_tokens`."""
        deprecated(
            "BaseModel.text_limit is now called max_text_tokens; the old name goes with the next release"
        )
        return self.max_text_tokens(length)

    def __repr__(self) -> str:
        kept = "" if self.quantization is None else f"{self.quantization} in "
        dtype = kept + str(self.dtype).removeprefix("torch.")
        parameters = self.model.num_parameters()
        size = f"{parameters / 1e6:.0f}M parameters"
        return f"BaseModel({self.name!r}, {size}, {self.geometry}, {dtype}, {self.device})"

    # -- what it computes ----------------------------------------------------------------------

    def per_row(self, prefixes: PrefixesArgument, rows: int) -> list[Prefix | None]:
        """`prefixes=` of the public functions as one prefix or None per row, checked and joined.

        Rows with the same prefixes to join get the same object.

        Raises:
            UsageError: another number of prefixes than rows, or prefixes that can't be joined.
            GeometryMismatch, WrongBaseModel: a prefix of another base.
            NonFinitePrefix: one with numbers beyond the range of the base's data type.
        """
        if prefixes is None or isinstance(prefixes, Prefix):
            given: list[Prefix | Sequence[Prefix] | None] = [prefixes] * rows
        else:
            given = list(prefixes)
        if len(given) != rows:
            raise UsageError(f"{len(given)} prefixes for {rows} rows; give one for all, or one per row")
        listed = [each for each in given if each is None or isinstance(each, Prefix)]
        if len(listed) != rows:
            from foreword.base.joining import join_rows  # needed where prefixes are joined alone

            listed = join_rows(self, given)
        for prefix in {id(p): p for p in listed if p is not None}.values():
            self.check_fits(prefix)
            self.check_placement(prefix.template)
            if prefix.template_digest is not None:
                self._template_changes.warn(prefix, self.shown_name)
            if prefix.positions == WITHIN_WINDOW != self.positions:
                raise UsageError(
                    f"the prefix has positions {WITHIN_WINDOW}, but {self.shown_name} has no layers with a "
                    "sliding window whose positions can be moved; train a prefix for it, or take "
                    "the base it is for"
                )
        return listed

    @cached_property
    def key_rotations(self) -> tuple[KeyRotation, ...]:
        """How the keys of each layer are moved to other positions, as a trial shows.

        Raises:
            UnsupportedArchitecture: they can't be.
        """
        from foreword.base.joining import find_rotations, small_model

        model = self.model if self._has_weights else small_model(self.model.config)
        return find_rotations(model, farthest=self.max_positions, positions=self.takes_positions)

    def check_fits(self, prefix: Prefix) -> None:
        """Refuse a prefix of another base, or one that this one's data type can't hold.

        Raises as `Prefix.check_fits`.
        """
        own = prefix.base.fingerprint in (None, self.fingerprint)
        # Of a folder with a second copy of its weights, `equivalent` reads all files: only where it counts.
        prefix.check_fits(self.identity, self.geometry, () if own else self.equivalent, self.dtype)

    def check_placement(self, template: Template) -> None:
        """Refuse an infix for a model that reads the source apart from the target.

        Raises:
            UsageError: an encoder-decoder.
        """
        if template.placement == "infix" and self.is_encoder_decoder:
            raise UsageError(
                f"placement is infix, but {self.shown_name} is an encoder-decoder: its source and target "
                "are no one text to stand in. Take the prefix; streams=('decoder', 'cross') leaves "
                "the source alone"
            )

    def batch(self, rows: Sequence[EncodedExample], prefixes: PrefixBatch | None, layout: Layout) -> Batch:
        """The tensors of one forward pass for `rows` under `prefixes`."""
        for row in rows:
            self.check_ids((*row.source_ids, *row.target_ids), "a text")
        pad_id = self.tokenizer.pad_token_id or 0
        pad_id = pad_id if pad_id < self.vocabulary else 0  # seen by nobody
        if self.is_encoder_decoder:
            return encoder_decoder_batch(rows, start_id=self.start_id, device=self.device, pad_id=pad_id)
        offsets = prefixes.lengths("decoder") if prefixes is not None else (0,) * len(rows)
        groups = prefixes.sharing_groups() if prefixes is not None else (0,) * len(rows)
        if (layout == "flat" and not self.packs_rows) or (layout == "left" and not self.pads_left):
            layout = "right"
        return decoder_batch(
            rows,
            offsets,
            groups,
            layout=layout,
            device=self.device,
            positions=self.takes_positions,
            pad_id=pad_id,
        )

    @checks_arguments
    def token_losses(
        self,
        examples: Sequence[Example],
        prefixes: PrefixesArgument = None,
        *,
        template: Template | None = None,
        layout: Layout = "flat",
        batch_tokens: int = 2048,
        numbers: Sequence[int] | None = None,
    ) -> list[torch.Tensor]:
        """The loss of each target token, one 1-D float32 tensor per example, in nats.

        Args:
            examples: B rows.
            prefixes: one for all, or one (or None) per row; several in one row are joined.
            template: of rows without a prefix (default: the base's own) ; rows with one use the
                prefix's.
            layout: how rows share a forward pass; the losses are the same for all three. What would let a
                hybrid's states run from row to row, or begin in padding, is padded on the right instead.
            batch_tokens: at most this many tokens at once; only memory depends on it.
            numbers: of the examples, by which errors name them (default: from 0).

        Raises:
            UsageError, GeometryMismatch, WrongBaseModel: see `per_row`.
            TemplateRefuses: a chat template that can't write an example.
            WindowExceeded: an example that does not fit: nothing is cut here.
            NotFinite: a loss that is NaN or infinite.
        """
        if batch_tokens < 1:
            raise UsageError(f"batch_tokens is {batch_tokens}; expected at least 1")
        examples = list(examples)
        listed = self.per_row(prefixes, len(examples))
        called = range(len(examples)) if numbers is None else list(numbers)
        if len(called) != len(examples):
            raise UsageError(f"{len(called)} numbers for {len(examples)} examples; give one per example")
        encoded = [
            self.encode_checked(example, prefix, template, number)
            for number, example, prefix in zip(called, examples, listed, strict=True)
        ]
        losses: list[torch.Tensor | None] = [None] * len(encoded)
        longest = max((prefix.length for prefix in listed if prefix is not None), default=0)
        with torch.no_grad():
            for indices in batches_by_length(encoded, batch_tokens, longest):
                row_prefixes = PrefixBatch.stack([listed[i] for i in indices], self.device)
                batch = self.batch([encoded[i] for i in indices], row_prefixes, layout)
                losses_M = target_losses(self.model, batch, row_prefixes).cpu()
                for index, row_losses in zip(indices, losses_M.split(batch.targets), strict=True):
                    if not row_losses.isfinite().all():
                        what = name_of(called[index], examples[index])
                        raise not_finite(what, "losses", prefixed=listed[index] is not None)
                    losses[index] = row_losses
        return [row for row in losses if row is not None]

    def encode_checked(
        self, example: Example, prefix: Prefix | None, template: Template | None, number: int
    ) -> EncodedExample:
        """An example, named by its number in errors, as token ids that fit behind its prefix: nothing is cut.

        Args:
            template: without a prefix; None for the base's own.

        Raises:
            UsageError, TemplateRefuses: see `encode_example`.
            WindowExceeded: says how many tokens it has, and how many fit.
        """
        chosen = prefix.template if prefix is not None else (template or self.template)
        with naming(number, example):
            row, _ = encode_example(example, self.tokenizer, chosen)
        self.check_ids((*row.source_ids, *row.target_ids), name_of(number, example))
        length = 0 if prefix is None else prefix.length
        limit = self.max_text_tokens(length)
        longest = max(len(row.source_ids), len(row.target_ids)) if self.is_encoder_decoder else row.tokens
        if limit is not None and longest > limit:
            raise WindowExceeded(
                f"{name_of(number, example)} has {longest} tokens; {limit} fit behind a prefix of length "
                f"{length} in {self.shown_name}{self.window_note}. Shorten it"
            )
        return row
