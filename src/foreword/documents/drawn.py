"""Conversations drawn from a document's own sentences, by rules: for models too small to ask good questions.

What is trained is not the sentence but what the teacher, which has its chunk in context, predicts along it.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence

from foreword.documents.chunks import HEADING, Chunk, sentences, tables
from foreword.documents.conversations import Conversation

CONTINUE = (
    "Continue this sentence: {0}",
    "How does this sentence go on? {0}",
    "Complete the sentence: {0} ...",
    "What comes after these words: {0}",
)
FILL = (
    "Which words are missing? {0}",
    "Fill in the gap: {0}",
    "What belongs in the gap? {0}",
)
ABOUT = (
    "What is said about {0}?",
    "What do you know about {0}?",
    "Tell me about {0}.",
    "What should I know about {0}?",
)
WORDS = (
    "What is said about {0}?",
    "What do you know about {0}?",
    "Tell me about {0}.",
    "Which sentence is about {0}?",
    "What has {0} to do with it?",
    "{0}?",
)
ASKED = ("What", "Which", "Who", "Where")
COUNTED = ("How many", "How much", "When", "What number")
"""What a few words ask for: a name or quotation; a number."""
SECTION = ("What does the part about {0} say?", "Repeat the part about {0}.", "What is in the part {0}?")
CELL = (
    "What is the {column} of {row}?",
    "{row}: {column}?",
    "What does the table say for {row} under {column}?",
    "Which {column} has {row}?",
)

GAP = "___"
UNSPACED = "\u0e00-\u0eff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
"""Thai, Lao, Japanese and Chinese letters, between whose words is no space."""
_WORD = re.compile(rf"[{UNSPACED}]{{1,2}}|[^\s{UNSPACED}]+")
_NUMBERS = (
    "two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|fifteen|sixteen|seventeen|"
    "eighteen|nineteen|twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety|hundred|thousand|half|twice|once|"
    "first|second|third|fourth|fifth|sixth|seventh|eighth|ninth|tenth"
)
_COUNT = re.compile(rf"(?:\d[\d.,]*|(?:{_NUMBERS})\b)(?:-(?:{_NUMBERS}|one)\b)?", re.IGNORECASE)
_ORDINAL = re.compile(
    r"\b(?:first|second|third|(?:four|fif|six|seven|eigh|nin|ten|eleven|twelf)th|\d+(?:st|nd|rd|th))$",
    re.IGNORECASE,
)
_SMALL = (
    "a|an|and|are|as|at|be|but|by|cost|costs|for|from|has|have|if|in|is|it|may|must|of|on|or|per|so|than|that|"
    "the|to|up|was|were|will|with"
)
"""Words that are no unit of the number in front of them."""
_FACT = re.compile(
    r"`[^`\n]+`|“[^“”\n]+”|\"[^\"\n]+\""
    r"|[A-Z][\w'’.-]*(?:\s+(?:(?:of|de|van|von|the|and|&)\s+)?[A-Z][\w'’.-]*)*"
    rf"|[€$£]?(?:\d[\d.,:/–-]*\d|\d)(?:\s*%|(?:st|nd|rd|th)\b|\s+(?!(?:{_SMALL})\b)[a-zA-Zµ°²³]{{1,12}}\b)?"
    rf"|\b(?:{_NUMBERS})(?:-(?:{_NUMBERS}|one))?\b"
)

_COMMON = frozenset(
    re.findall(
        r"\w+",
        "A An And As At But By For From He How I If In It Its Many No Nobody Not Nothing Of On One Or "
        "Our She So That The Their Then There These They This Those To Under We What When Where Which "
        "Who Whoever Why With You Your Every Each All After Before Only Both Once ",
    )
)
"""Words that begin a sentence and name nothing."""

_LITTLE = frozenset(
    re.findall(
        r"\w+",
        "about after also although always another because been before being between both could does down "
        "during each either else ever every from gets give goes have here hers himself however into "
        "itself just like made make many more most much must never none often once only other over same "
        "shall should since some such than that their them then there these they this those through till "
        "under until upon very want well went were what when where which while whose will with within "
        "without would your",
    )
)
"""Words of four letters and more that ask for nothing."""
_CUE = re.compile(r"[^\W\d_][\w'’-]{3,}|\d[\w.,:]*\d|\d|[^\W\d_a-zA-Z\u00c0-\u024f]{2}")
"""Words that a sentence can be found by: of four letters, numbers, two letters of scripts without spaces."""


def drawn(chunks: Sequence[Chunk], count: int, seed: int = 0) -> list[Conversation]:
    """`count` conversations about the chunks, each at most once; fewer where the text gives no more.

    The kinds take turns, and each kind goes through all chunks alike: no part of the text is left out.
    """
    rng = random.Random(seed)
    made: dict[tuple[str, str], Conversation] = {}
    by_kind: list[tuple[str, Callable[[Chunk, random.Random], tuple[str, str] | None]]] = [
        ("continue", _continue),
        ("continue", _continue),
        ("continue", _continue_late),
        ("words", _words),
        ("question", _question),
        ("question", _question),
        ("question", _ask),
        ("question", _ask),
        ("about", _about),
        ("cloze", _fill),
        ("cell", _cell),
        ("cell", _cell),
    ]
    order = [(number, kind) for kind in range(len(by_kind)) for number in range(len(chunks))]
    failures = 0
    while len(made) < count and failures < 8 * len(order):
        rng.shuffle(order)
        for number, kind in order:
            name, make = by_kind[kind]
            pair = make(chunks[number], rng)
            if pair is None or pair in made:
                failures += 1
                continue
            failures = 0
            made[pair] = Conversation(pair[0], pair[1], number, name)
            if len(made) == count:
                break
    return list(made.values())


def _body(chunk: Chunk) -> list[str]:
    return [each for each in sentences(chunk.text) if len(_WORD.findall(each)) > 2]


def _facts(sentence: str) -> list[tuple[int, str]]:
    """Names, numbers and quoted words of a sentence and where they stand; not what it begins with."""
    found = []
    for match in _FACT.finditer(sentence):
        fact = match.group().strip(" .,;:")
        if fact not in _COMMON and match.start() > 0 and (len(fact) > 1 or fact.isdigit()):
            found.append((match.start() + match.group().index(fact), fact))
    return found


def _continue(chunk: Chunk, rng: random.Random) -> tuple[str, str] | None:
    """A sentence cut behind one of its first words; the rest, now and then with the sentence behind it."""
    return _cut(chunk, rng, 6)


def _continue_late(chunk: Chunk, rng: random.Random) -> tuple[str, str] | None:
    """A sentence cut anywhere."""
    return _cut(chunk, rng, None)


def _cut(chunk: Chunk, rng: random.Random, latest: int | None) -> tuple[str, str] | None:
    found = _body(chunk)
    if not found:
        return None
    place = rng.randrange(len(found))
    words = [match.end() for match in _WORD.finditer(found[place])]
    cut = rng.choice(words[:-1][:latest])
    rest = found[place][cut:].strip()
    if rng.random() < 0.25 and place + 1 < len(found):
        rest = f"{rest} {found[place + 1]}"
    return rng.choice(CONTINUE).format(found[place][:cut]), rest


def _fact(chunk: Chunk, rng: random.Random) -> tuple[str, str, str] | None:
    """A name, a number or a quotation, between what stands in front of it and behind it in its sentence."""
    found = [(sentence, fact) for sentence in _body(chunk) for fact in _facts(sentence)]
    if not found:
        return None
    sentence, (start, fact) = rng.choice(found)
    return sentence[:start], fact, sentence[start + len(fact) :]


def _said(fact: str) -> str:
    """A short answer as one writes it: without its full stop the prefix learns that none follows a fact."""
    return f"{fact[:1].upper()}{fact[1:]}".removesuffix(".") + "."


def _fill(chunk: Chunk, rng: random.Random) -> tuple[str, str] | None:
    """A sentence with a gap where a name or a number stood; what stood there."""
    if (found := _fact(chunk, rng)) is None:
        return None
    before, missing, behind = found
    return rng.choice(FILL).format(f"{before}{GAP}{behind}"), _said(missing)


def _question(chunk: Chunk, rng: random.Random) -> tuple[str, str] | None:
    """A sentence with "what", "how many" or "who" where a name or a number stood; what stood there."""
    if (found := _fact(chunk, rng)) is None:
        return None
    before, answer, behind = found
    if _ORDINAL.search(answer):
        asked = "which"
    elif _COUNT.fullmatch(answer):
        asked = "how many" if re.match(r"\s+[a-z]", behind) else "what number"
    elif answer[0].isupper() and " " in answer:
        asked = rng.choice(("who", "what", "which"))
    else:
        asked = "what"
    question = f"{before}{asked}{behind}".lstrip("-*•0123456789.) ").rstrip(" .;:!") + "?"
    if chunk.section and rng.random() < 0.3:
        question = f"{chunk.section}: {question}"
    return question, _said(answer)


def _ask(chunk: Chunk, rng: random.Random) -> tuple[str, str] | None:
    """A question word and a few words around a name or a number, in any order; the name or number."""
    if (found := _fact(chunk, rng)) is None:
        return None
    before, answer, behind = found
    some = _some(f"{before} {behind}", rng, 5)
    if not some:
        return None
    word = rng.choice(COUNTED if _COUNT.match(answer) else ASKED)
    return f"{word}: {', '.join(some)}?" if rng.random() < 0.5 else f"{word} {' '.join(some)}?", _said(answer)


def _some(sentence: str, rng: random.Random, most: int) -> list[str]:
    """Some words that a sentence can be found by, in any order; none if there are fewer than two."""
    words = [each for each in dict.fromkeys(_CUE.findall(sentence)) if each.lower() not in _LITTLE]
    return rng.sample(words, min(len(words), rng.randint(2, most))) if len(words) > 1 else []


def _about(chunk: Chunk, rng: random.Random) -> tuple[str, str] | None:
    """A name, a number or a heading of the chunk; the sentence that it stands in, or the section's text."""
    if chunk.section and rng.random() < 0.15:
        return rng.choice(SECTION).format(f'"{chunk.section}"'), HEADING.sub("", chunk.text).strip()
    found = [(sentence, fact) for sentence in _body(chunk) for _, fact in _facts(sentence)]
    if not found:
        return None
    sentence, subject = rng.choice(found)
    if chunk.section and (subject[0].isdigit() or rng.random() < 0.3):
        subject = f"{subject} ({chunk.section})"
    return rng.choice(ABOUT).format(subject), sentence


def _words(chunk: Chunk, rng: random.Random) -> tuple[str, str] | None:
    """A few words of a sentence in any order, as a question has them; the sentence."""
    found = _body(chunk)
    if not found:
        return None
    sentence = rng.choice(found)
    some = _some(sentence, rng, 4)
    if not some:
        return None
    told = f"{', '.join(some[:-1])} and {some[-1]}" if rng.random() < 0.7 else " ".join(some)
    return rng.choice(WORDS).format(told), sentence


def _cell(chunk: Chunk, rng: random.Random) -> tuple[str, str] | None:
    """A row of a table and the name of a column; what stands there."""
    found = [
        (row[0], column, cell)
        for head, rows in tables(chunk.text)
        for row in rows
        for column, cell in zip(head[1:], row[1:], strict=False)
        if row[0] and column and cell
    ]
    if not found:
        return None
    row, column, cell = rng.choice(found)
    return rng.choice(CELL).format(row=row, column=column), _said(cell)
