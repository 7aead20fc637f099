"""METEOR 1.5: one Java process, which reads its tables once and scores as often as it is asked."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextvars import ContextVar

from foreword.evaluation.metrics import java
from foreword.evaluation.metrics.java import METEOR_JAR, failed, require_jar, require_java, silent

_kept: ContextVar[list[Meteor] | None] = ContextVar("kept", default=None)


class Meteor:
    """The running program.

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

        limit = threading.Timer(java.ANSWER_SECONDS, end)  # pipes have none, neither to write nor to read
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
