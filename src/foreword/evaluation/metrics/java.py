"""Java programs that official evaluations use: METEOR 1.5 and Stanford's PTB tokenizer.

Both come as jar files in the package `pycocoevalcap`, letter by letter those of the E2E challenge. They are
run here, not through that package, whose wrappers write into its own folder and depend on the locale.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from foreword.errors import MetricUnavailable

METEOR_JAR = "meteor/meteor-1.5.jar"
TOKENIZER_JAR = "tokenizer/stanford-corenlp-3.4.1.jar"

# Far more than any answer takes: the longest are of all texts together, on a machine that is busy.
ANSWER_SECONDS = 600.0

# What the challenge's scripts drop from the tokens (Fang & Lin's ptbtokenizer.py of coco-caption).
DROPPED = frozenset(
    ["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";"]
)


def require_java(metric: str) -> str:
    """Path of the `java` program.

    Raises:
        MetricUnavailable: there is none.
    """
    found = shutil.which("java")
    if found is None:
        raise MetricUnavailable(
            f"Java missing: {metric} is a Java program and there is no `java` on the path; install a Java "
            "runtime of version 8 or later (Debian: apt install default-jre-headless; macOS: brew install "
            "openjdk), or choose metrics without it"
        )
    return found


def require_jar(metric: str, name: str) -> Path:
    """Path of a jar file of `pycocoevalcap`.

    Raises:
        MetricUnavailable: the package is not installed, or without the file.
    """
    package = importlib.util.find_spec("pycocoevalcap")
    folders = list(package.submodule_search_locations or ()) if package is not None else []
    found = next((path for folder in folders if (path := Path(folder, name)).is_file()), None)
    if found is None:
        raise MetricUnavailable(
            f"{metric} needs {name} of the package pycocoevalcap; install it: pip install 'foreword[eval]'"
        )
    return found


def penn_tokens(texts: Sequence[str], metric: str) -> list[str]:
    """Each text in lower case, split as the Penn Treebank has it, without punctuation.

    Raises:
        MetricUnavailable: no Java, no jar file, or the program failed or gave no answer.
    """
    command = [require_java(metric), "-Dfile.encoding=UTF-8", "-cp"]
    command += [str(require_jar(metric, TOKENIZER_JAR)), "edu.stanford.nlp.process.PTBTokenizer"]
    command += ["-preserveLines", "-lowerCase", "-encoding", "UTF-8"]
    written = "".join(" ".join(text.splitlines()) + "\n" for text in texts)
    try:
        done = subprocess.run(
            command, input=written.encode(), capture_output=True, check=False, timeout=ANSWER_SECONDS
        )
    except subprocess.TimeoutExpired as late:
        raise silent("the PTB tokenizer", late.stderr or b"") from late
    lines = done.stdout.decode().split("\n")[:-1]
    if done.returncode or len(lines) != len(texts):
        raise failed("the PTB tokenizer", done.returncode, done.stderr)
    return [" ".join(word for word in line.rstrip().split(" ") if word not in DROPPED) for line in lines]


def failed(program: str, status: int, complaints: bytes) -> MetricUnavailable:
    """The error for a program that gave something else than scores, with the end of what it said."""
    return MetricUnavailable(
        f"{program} ended with status {status} and said: {_end_of(complaints)}; expected scores. "
        "Is this Java of version 8 or later, with 2 GB of memory to spare?"
    )


def silent(program: str, complaints: bytes) -> MetricUnavailable:
    """The error for a program that was ended because it gave no answer in time."""
    return MetricUnavailable(
        f"{program} gave no answer within {ANSWER_SECONDS:g} seconds and was ended; it said: "
        f"{_end_of(complaints)}. Expected scores: has this machine 2 GB of memory to spare? If it is "
        "busy, try again later"
    )


def _end_of(complaints: bytes) -> str:
    return " / ".join(complaints.decode(errors="replace").strip().splitlines()[-3:]) or "nothing"
