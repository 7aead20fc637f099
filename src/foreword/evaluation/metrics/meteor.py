"""The Java programs that official evaluations use: METEOR 1.5 and Stanford's PTB tokenizer.

Both come as jar files in the package `pycocoevalcap`, letter by letter those of the E2E challenge. They are
run here, not through that package, whose wrappers write into its own folder and depend on the locale.
"""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
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
    program = shutil.which("java")
    if program is None:
        raise MetricUnavailable(
            f"Java missing: {metric} is a Java program and there is no `java` on the path; install a Java "
            "runtime of version 8 or later (Debian: apt install default-jre-headless; macOS: brew install "
            "openjdk), or choose metrics without it"
        )
    return program


def require_jar(metric: str, name: str) -> Path:
    """Path of a jar file of `pycocoevalcap`.

    Raises:
        MetricUnavailable: the package is not installed, or without the file.
    """
    package = importlib.util.find_spec("pycocoevalcap")
    folders = list(package.submodule_search_locations or ()) if package is not None else []
    jar = next((path for folder in folders if (path := Path(folder, name)).is_file()), None)
    if jar is None:
        raise MetricUnavailable(
            f"{metric} needs {name} of the package pycocoevalcap; install it: pip install 'foreword[eval]'"
        )
    return jar


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


_kept: ContextVar[list[Meteor] | None] = ContextVar("kept", default=None)


class Meteor:
    """The running program, which reads its tables once and scores as often as it is asked.

    It is asked as coco-caption asks it: a line of statistics for each text, then a line with all of them. The
    figure is that of its command line, `meteor-1.5.jar texts references -l en -norm -r N`.
    """

    def __init__(self) -> None:
        # 2 GB: the official scripts say the same.
        command = [require_java("METEOR"), "-Dfile.encoding=UTF-8", "-Xmx2G", "-jar"]
        command += [str(require_jar("METEOR", METEOR_JAR)), "-", "-", "-stdio", "-l", "en", "-norm"]
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115 (`close` closes it)
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._complaints
        )

    def score(self, texts: Sequence[str], references: Sequence[Sequence[str]]) -> float:
        """METEOR of all texts together, 0 to 1.

        Raises:
            MetricUnavailable: the program failed, or gave no answer in time.
        """
        statistics = [
            self._answer(" ||| ".join(["SCORE", *map(_barless, meant), _barless(text)]))
            for text, meant in zip(texts, references, strict=True)
        ]
        answer = self._answer(" ||| ".join(["EVAL", *statistics]))
        for _ in texts:  # one score a text, then the score of all
            answer = self._answer()
        return float(answer)

    def close(self) -> None:
        """End the program."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._complaints):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def _answer(self, question: str | None = None) -> str:
        """The program's next line, after the question if there is one."""
        late = threading.Event()

        def end() -> None:
            late.set()
            self._process.kill()

        limit = threading.Timer(ANSWER_SECONDS, end)  # pipes have none, neither to write nor to read
        limit.daemon = True
        limit.start()
        try:
            line = self._exchange(question)
        finally:
            limit.cancel()
        if line and not late.is_set():
            return line
        self._process.kill()
        status = self._process.wait()
        self._complaints.seek(0)
        said = self._complaints.read()
        raise silent("METEOR", said) if late.is_set() else failed("METEOR", status, said)

    def _exchange(self, question: str | None) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if question is not None:
            with contextlib.suppress(BrokenPipeError):  # it ended; _answer says why
                self._process.stdin.write(question.encode() + b"\n")
                self._process.stdin.flush()
        return self._process.stdout.readline().decode().strip()


@contextlib.contextmanager
def keeping_meteor() -> Iterator[None]:
    """Within this, one process answers all calls of `meteor`: it takes seconds to start, and 1 GB.

    It starts at the first call; one that failed is not used again.
    """
    if _kept.get() is not None:  # nested: the outermost ends it
        yield
        return
    running: list[Meteor] = []
    token = _kept.set(running)
    try:
        yield
    finally:
        _kept.reset(token)
        for one in running:
            one.close()


def meteor(texts: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """METEOR of all texts together, 0 to 1.

    Raises:
        MetricUnavailable: no Java, no jar file, or the program failed.
    """
    with keeping_meteor():
        running = _kept.get()
        assert running is not None
        if not running:
            running.append(Meteor())
        try:
            return running[0].score(texts, references)
        except BaseException:  # its answers would be out of step with the next questions
            running.pop().close()
            raise


def _barless(text: str) -> str:
    """`|||` parts the fields of METEOR's lines."""
    return " ".join(text.replace("|||", "").splitlines()).replace("  ", " ")
