"""Grammars: what a text has to be, as a mask over the tokens that may come next.

llguidance does the work: it compiles a JSON schema, or its own kind of Lark grammar, and says at each token
which ones keep the text inside it. Here stand what a schema may be, the limits of what following one may
cost, and the masks of a batch. docs/serve.md says why it is that library.

Shapes: R rows that follow a grammar, V vocabulary, W bytes of a mask with one bit a token.
"""

from __future__ import annotations

import hashlib
import json
import math
import threading
from collections import OrderedDict, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from transformers import LogitsProcessor, PreTrainedTokenizerFast

from foreword.errors import BadSchema, UsageError

LONGEST_SCHEMA = 1 << 16
"""Characters of a schema as JSON."""
MOST_KEPT = 128
"""Compiled grammars that are kept; the longest unused go first."""
LIMITS: dict[str, Any] = {
    "initial_lexer_fuel": 1_000_000,  # about 20 ms of compiling
    "step_lexer_fuel": 50_000,  # about 4 ms of a mask
    "step_max_items": 20_000,  # about 1 ms of a mask
    "max_items_in_row": 2_000,
    "max_lexer_states": 10_000,  # of 1 to 2 KB
    "max_grammar_size": 100_000,
}
"""What compiling a grammar and making one mask may cost, in llguidance's units; what needs more is refused.
The speeds are its own documentation's."""
MOST_PATTERNS = 16
MOST_MULTIPLE = 1000
SEPARATORS = {"item_separator": ", ?", "key_separator": ": ?", "whitespace_flexible": False}
"""Regular expressions. Small models that may write any whitespace go on with it for ever; this takes what
`json.dumps` writes, and JSON without spaces."""
FORMATS = ("date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "time", "uri", "uuid")
"""Those that llguidance follows."""
INSTALL = "structured output needs llguidance; install it with: pip install 'foreword[structured]'"

Schema = Mapping[str, Any] | bool


# -- schemas ---------------------------------------------------------------------------------------


def json_grammar(schema: Any) -> str:
    """The grammar of the JSON texts that a schema allows. Raises BadSchema: see `json_rule`."""
    return f"start: {json_rule(schema)}\n"


def json_rule(schema: Any) -> str:
    """A JSON text that a schema allows, as a part of a rule.

    An object that names its properties has no others, unless it says `additionalProperties`: the text is
    valid either way, and a model that may add any goes on for long.

    Raises:
        BadSchema: no schema, too large, nested too deeply, or such that no finite text satisfies it.
    """
    if hasattr(schema, "model_json_schema"):  # a class of pydantic's
        schema = schema.model_json_schema()
    if not isinstance(schema, Mapping | bool):
        raise BadSchema(f"the schema is {type(schema).__name__}; expected an object, as JSON Schema has it")
    try:
        text = json.dumps(schema, ensure_ascii=False, allow_nan=False)
        text.encode()
    except RecursionError as error:
        raise BadSchema("the schema is nested too deeply; expected fewer levels") from error
    except (TypeError, ValueError) as error:
        raise BadSchema(f"the schema is not JSON: {error}") from error
    if len(text) > LONGEST_SCHEMA:
        raise BadSchema(f"the schema has {len(text)} characters; expected at most {LONGEST_SCHEMA}")
    whole = json.loads(text)
    if whole is False or not _has_end(whole):
        raise BadSchema(
            "no text satisfies the schema: it is recursive without end, or needs what it forbids; let the "
            "recursion end, in a property that is not required, an array without minItems or another type"
        )
    if whole is True:
        whole = {}
    schemas = list(_schemas(whole))
    _check_size(schemas)
    for each in schemas:
        _simplify(each, whole)
    if not any(map(_merges, _schemas(whole))):
        for each in list(_schemas(whole)):
            if isinstance(each.get("properties"), dict) and not _OPEN & each.keys():
                each["additionalProperties"] = False
    # Ours come last: with another choice a text would not be what the schema says.
    rules = {**SEPARATORS, "coerce_one_of": False, "lenient": False}
    return f"%json {json.dumps({**whole, 'x-guidance': rules})}"


_OPEN = {"additionalProperties", "patternProperties", "unevaluatedProperties"}
_NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_PARTS = ("items", "prefixItems", "additionalProperties", "contains", "allOf", "anyOf", "oneOf", "not")


def _schemas(schema: Any) -> Iterator[dict[str, Any]]:
    """A schema and all that stand in it; values of `const` and the like, which may look so, are none."""
    waiting = [schema]
    while waiting:
        item = waiting.pop()
        if isinstance(item, list):
            waiting.extend(item)
        elif isinstance(item, dict):
            yield item
            waiting.extend(item[name] for name in _PARTS if name in item)
            for name in _NAMED:
                if isinstance(item.get(name), dict):
                    waiting.extend(item[name].values())


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    """Every object in a JSON value."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            yield item
            waiting.extend(item.values())
        elif isinstance(item, list):
            waiting.extend(item)


def _check_size(schemas: Sequence[dict[str, Any]]) -> None:
    """Refuse what llguidance's own limits do not bound. Raises BadSchema."""
    multiples = set[int]()
    for each in schemas:
        patterns, multiple = each.get("patternProperties"), each.get("multipleOf")
        if isinstance(patterns, dict) and len(patterns) > MOST_PATTERNS:  # each is compared with each
            raise BadSchema(
                f"patternProperties has {len(patterns)} patterns; expected at most {MOST_PATTERNS}"
            )
        if isinstance(multiple, int | float) and not isinstance(multiple, bool):
            multiples.add(abs(int("".join(map(str, Decimal(str(multiple)).as_tuple().digits)))) or 1)
    # A state for each remainder; where schemas are combined, for each of all of them.
    combined = any(not {"allOf", "anyOf", "oneOf", "$ref"}.isdisjoint(each) for each in schemas)
    if (math.prod(multiples) if combined else max(multiples, default=1)) > MOST_MULTIPLE:
        raise BadSchema(
            f"multipleOf takes too many digits: {', '.join(map(str, sorted(multiples)))}; expected at most "
            f"{MOST_MULTIPLE}, in a schema with allOf, anyOf, oneOf or $ref the product of all"
        )


def _simplify(schema: dict[str, Any], root: Any) -> None:
    """Say in a way that llguidance understands what does not change which texts are valid."""
    if isinstance(schema.get("format"), str) and schema["format"] not in FORMATS:
        del schema["format"]  # which a validator does not know either
    if schema.get("uniqueItems") is False:
        del schema["uniqueItems"]
    if isinstance(schema.get("oneOf"), list) and "anyOf" not in schema and _apart(schema["oneOf"], root):
        schema["anyOf"] = schema.pop("oneOf")


def _apart(schemas: Sequence[Any], root: Any) -> bool:
    """Whether no object satisfies two schemas: a property that they all require has other values in each."""
    resolved = [_target(root, each.get("$ref")) or each if isinstance(each, dict) else {} for each in schemas]
    values: dict[str, list[Any]] = {}
    for each in resolved:
        properties, required = each.get("properties"), each.get("required")
        if isinstance(properties, dict) and isinstance(required, list):
            for name, part in properties.items():
                part = part if isinstance(part, dict) else {}
                given = [part["const"]] if "const" in part else part.get("enum")
                if (
                    name in required
                    and isinstance(given, list)
                    and all(isinstance(one, str) for one in given)
                ):
                    values.setdefault(name, []).append(set(given))
    return any(
        len(sets) == len(schemas) and len(set().union(*sets)) == sum(map(len, sets))
        for sets in values.values()
    )


def _merges(schema: dict[str, Any]) -> bool:
    """Whether an object is described in several places, none of which may then forbid what others name."""
    parts = schema.get("allOf")
    several = isinstance(parts, list) and len(parts) > 1
    beside = "properties" in schema and not {"allOf", "anyOf", "oneOf", "$ref"}.isdisjoint(schema)
    return several or beside


def _has_end(root: Any) -> bool:
    """Whether some finite text satisfies a schema, as far as its recursion says.

    Those that have one are found from the leaves on. A schema that lacks a part waits for it, so that each is
    looked at again only when that part has been found.
    """
    ended, waiting = set[int](), defaultdict[int, list[dict[str, Any]]](list)
    looking = list(_objects(root))
    while looking:  # from its end: leaves stand there
        node = looking.pop()
        if id(node) in ended:
            continue
        missing: list[Any] = []
        if _node_ends(node, root, ended, missing):
            ended.add(id(node))
            looking.extend(waiting.pop(id(node), ()))
        for part in missing:
            waiting[id(part)].append(node)
    return not isinstance(root, dict) or id(root) in ended


def _node_ends(node: dict[str, Any], root: Any, ended: set[int], missing: list[Any]) -> bool:
    """Whether a schema is known to have an end; what it lacks for it is added to `missing`."""

    def ends(part: Any) -> bool:
        if isinstance(part, dict) and id(part) not in ended:
            missing.append(part)
            return False
        return part is not False

    def listed(name: str) -> list[Any]:
        return part if isinstance(part := node.get(name), list) else []

    if "enum" in node or "const" in node:
        return True
    if not ends(_target(root, node.get("$ref"))) or not all(map(ends, listed("allOf"))):
        return False
    if not all(any(map(ends, listed(name))) for name in ("anyOf", "oneOf") if listed(name)):
        return False
    types = node.get("type")
    kinds = {types} if isinstance(types, str) else set(map(str, types)) if isinstance(types, list) else {""}
    if kinds - {"object", "array"}:
        return True
    properties = node.get("properties")
    named = properties if isinstance(properties, dict) else {}
    required = [name for name in listed("required") if isinstance(name, str)]
    if "object" in kinds and all(ends(named.get(name)) for name in required):
        return True
    least, first = node.get("minItems"), listed("prefixItems")
    least = least if isinstance(least, int) else 0
    return (
        "array" in kinds
        and all(map(ends, first[:least]))
        and (least <= len(first) or ends(node.get("items")))
    )


def _target(root: Any, reference: Any) -> Any:
    """What a reference into the schema itself names; None for any other, which llguidance judges."""
    if not isinstance(reference, str) or not reference.startswith("#"):
        return None
    found = root
    for part in reference.removeprefix("#").split("/")[1:]:
        part = part.replace("~1", "/").replace("~0", "~")
        if isinstance(found, list) and part.isdecimal() and int(part) < len(found):
            found = found[int(part)]
        elif isinstance(found, dict):
            found = found.get(part)
        else:
            return None
    return found


# -- compiling -------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Grammar:
    """A grammar, compiled for one tokenizer.

    Attributes:
        text: in llguidance's Lark.
        digest: SHA-256 of the text.
        end_id: the token that ends a text that is complete.
        mask_bytes: W.
    """

    text: str
    digest: str
    end_id: int
    mask_bytes: int
    _matcher: Any = field(repr=False)

    def state(self) -> GrammarState:
        """Where a new text is in it: at its beginning."""
        return GrammarState(self._matcher.deep_copy(), self.end_id, self.mask_bytes)


class GrammarState:
    """How far one text has come in its grammar."""

    def __init__(self, matcher: Any, end_id: int, mask_bytes: int) -> None:
        self.mask_bytes = mask_bytes
        self._matcher = matcher
        self._end_id = end_id

    @property
    def complete(self) -> bool:
        """Whether the text is whole, and nothing may follow."""
        return bool(self._matcher.is_stopped()) and not self._matcher.is_error()

    def take(self, token: int) -> None:
        """Go on behind a token that is none of the row's ends. Raises BadSchema as `allow`."""
        self._matcher.consume_token(token)
        self._check()

    def allow(self, mask_W: np.ndarray, end_ids: Sequence[int] | frozenset[int]) -> None:
        """Set the bits of the tokens that may come next; of the row's ends only where the text may end.

        Raises:
            BadSchema: to know them takes more than `LIMITS`, or there are none: letters without a token.
        """
        self._matcher.unsafe_compute_mask_ptr(mask_W.ctypes.data, mask_W.nbytes)
        self._check()
        may_end = self._matcher.is_accepting()
        for token in {*end_ids, self._end_id}:
            if token >= 8 * len(mask_W):  # an end that the tokenizer does not have
                continue
            bit = np.uint8(1 << token % 8)
            if may_end and token in end_ids:
                mask_W[token // 8] |= bit
            else:
                mask_W[token // 8] &= ~bit
        if not mask_W.any():
            raise BadSchema("the schema asks for a text that the model has no tokens for; change its letters")

    def _check(self) -> None:
        if self._matcher.is_error():
            why = reason(self._matcher.get_error())
            raise BadSchema(f"the schema can't be followed any further: {why}; simplify it")


def reason(error: str) -> str:
    """The first line of what llguidance says, cut short."""
    lines = [line.strip() for line in error.splitlines() if line.strip()]
    return lines[0][:300].rstrip(".") if lines else "no reason given"


class GrammarCompiler:
    """Grammars for one tokenizer; those that were compiled before are kept, each owner's apart.

    May be called from several threads.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, str], Grammar] = OrderedDict()
        self._library: Any = None

    def compile(self, text: str, owner: str = "") -> Grammar:
        """The grammar of a text in llguidance's Lark.

        Raises:
            UsageError: llguidance is not installed, or can't read this tokenizer.
            BadSchema: what it says can't be satisfied, is not understood or asks for too much.
        """
        digest = hashlib.sha256(text.encode()).hexdigest()
        with self._lock:
            if (found := self._kept.get((owner, digest))) is not None:
                self._kept.move_to_end((owner, digest))
                return found
            if self._library is None:
                self._library = _library_of(self._tokenizer)
        import llguidance

        limits = llguidance.LLParserLimits(verbose_errors=False, **LIMITS)
        matcher = llguidance.LLMatcher(self._library, text, log_level=0, limits=limits)
        if matcher.is_error():
            raise BadSchema(f"the schema can't be followed: {reason(matcher.get_error())}")
        mask_bytes = -(-self._library.vocab_size // 32) * 4
        grammar = Grammar(text, digest, self._library.eos_token, mask_bytes, matcher)
        with self._lock:
            self._kept[owner, digest] = grammar
            while len(self._kept) > MOST_KEPT:
                self._kept.popitem(last=False)
        return grammar


_compilers: WeakKeyDictionary[Any, GrammarCompiler] = WeakKeyDictionary()


def compiler_of(tokenizer: Any) -> GrammarCompiler:
    """The one compiler of grammars for a tokenizer."""
    return _compilers.setdefault(tokenizer, GrammarCompiler(tokenizer))


def _library_of(tokenizer: Any) -> Any:
    """llguidance's own form of a tokenizer; takes about a second for one of a usual size."""
    try:
        import llguidance.hf
    except ModuleNotFoundError as error:
        raise UsageError(INSTALL) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast) or tokenizer.eos_token_id is None:
        raise UsageError(
            f"structured output needs a fast tokenizer with an end token; this one is "
            f"{type(tokenizer).__name__}"
        )
    return llguidance.hf.from_tokenizer(tokenizer)


# -- masks of a batch ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Following:
    """A row that follows a grammar: where it is, and what ends it."""

    state: GrammarState
    end_ids: frozenset[int]


@dataclass(frozen=True)
class Masks:
    """What some rows of a batch may write next.

    Attributes:
        places: of the R rows that follow a grammar.
        bits_RW: a bit for each token, the first in the lowest of a byte.
        failed: why a row can't go on, by its place.
    """

    places: list[int]
    bits_RW: np.ndarray
    failed: dict[int, Exception]

    def applied(self, logits_BV: torch.Tensor) -> torch.Tensor:
        """Logits with minus infinity for what the rows may not write."""
        device, vocabulary = logits_BV.device, logits_BV.shape[-1]
        bits_RW1 = torch.from_numpy(self.bits_RW).to(device, non_blocking=True)[:, :, None]
        shifts_8 = torch.arange(8, device=device, dtype=torch.uint8)
        allowed_RV = (bits_RW1 >> shifts_8).bitwise_and_(1).bool().flatten(1)[:, :vocabulary]
        # Columns beyond the tokenizer's tokens, which pad a model's head.
        allowed_RV = torch.nn.functional.pad(allowed_RV, (0, vocabulary - allowed_RV.shape[1]))
        places_R = torch.tensor(self.places).to(device, non_blocking=True)
        masked_RV = logits_BV[places_R].masked_fill_(~allowed_RV, -torch.inf)
        return logits_BV.index_copy(0, places_R, masked_RV)


def masks_of(rows: Sequence[Following | None]) -> Masks | None:
    """What each row that follows a grammar may write next; None where none does."""
    following = [(place, row) for place, row in enumerate(rows) if row is not None]
    if not following:
        return None
    bits_RW = np.zeros((len(following), following[0][1].state.mask_bytes), dtype=np.uint8)
    failed: dict[int, Exception] = {}
    for bits_W, (place, row) in zip(bits_RW, following, strict=True):
        try:
            row.state.allow(bits_W, row.end_ids)
        except Exception as error:  # this row's alone, whatever it is: the others go on
            failed[place] = error
    return Masks([place for place, _ in following], bits_RW, failed)


class GrammarRows(LogitsProcessor):
    """Logits of transformers' `generate` where each row of the batch follows its own grammar, or none."""

    def __init__(self, grammars: Sequence[Grammar | None], end_ids: frozenset[int], start: int) -> None:
        """`start`: tokens of a row in front of its first new one."""
        self._rows = [None if each is None else Following(each.state(), end_ids) for each in grammars]
        self._ended = [False] * len(self._rows)
        self._start = start

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if input_ids.shape[1] > self._start:
            for place, token in enumerate(input_ids[:, -1].tolist()):
                self._take(place, token)
        going = [None if ended else row for row, ended in zip(self._rows, self._ended, strict=True)]
        if (masks := masks_of(going)) is None:
            return scores
        for error in masks.failed.values():
            raise error
        return masks.applied(scores)

    def _take(self, place: int, token: int) -> None:
        row = self._rows[place]
        if row is not None and not self._ended[place]:
            self._ended[place] = token in row.end_ids
            if not self._ended[place]:
                row.state.take(token)

    def keep(self, places: Sequence[int]) -> None:
        """Of the rows of the batch, these go on."""
        self._rows = [self._rows[place] for place in places]
        self._ended = [self._ended[place] for place in places]
