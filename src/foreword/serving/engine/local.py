"""The local engine: transformers in this process, one running batch for the rows of all owners.

A thread drives the model; rows come from and tokens go to asyncio, where the gateway lives.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field

from foreword.base.base_model import BaseModel
from foreword.base.prepacked_linear import is_prepared, packed_weights, packing_pays
from foreword.errors import EngineStopped, UnsupportedArchitecture, UsageError, WindowExceeded
from foreword.prefix import Prefix
from foreword.serving.engine.continuous_batch import ContinuousBatch, RunningRow
from foreword.serving.engine.protocol import Row, Token
from foreword.serving.engine.scheduler import FairQueue

MAX_ROWS = 32
"""Rows of the running batch, unless told otherwise: more give a CPU no more tokens a second."""

MAX_HELD = 65_536
"""Tokens, virtual ones among them, whose keys and values are held; bounds memory."""


@dataclass(eq=False)
class _Asked:
    """A row on its way: where its tokens go, and whether somebody still wants them."""

    running: RunningRow
    loop: asyncio.AbstractEventLoop
    answers: asyncio.Queue[Token | Exception] = field(default_factory=asyncio.Queue)
    gone: bool = False

    def answer(self, token: Token | Exception) -> None:
        """From the engine's thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is there to be told
            self.loop.call_soon_threadsafe(self.answers.put_nowait, token)


class LocalEngine:
    """Continuous batching over one base model: rows of all owners, each behind its own prefix."""

    def __init__(self, base: BaseModel, *, max_rows: int = MAX_ROWS, max_held: int = MAX_HELD) -> None:
        """
        Args:
            max_rows: rows that run at once; others wait.
            max_held: most columns of keys and values times rows that running rows may come to need; a row
                that alone needs more still runs.

        Raises:
            UnsupportedArchitecture: the base's cache does not keep every token as attention sees it
                (sliding windows, latent attention), or it is an encoder-decoder.
        """
        if not base.cache_takes_prefixes or not base.takes_positions:
            raise UnsupportedArchitecture(
                f"{base.name} can't be served by the local engine: it needs a decoder-only model whose cache "
                "keeps the keys and values of every token and that takes position ids; `foreword generate` "
                "runs this one"
            )
        self._base = base
        self._max_rows = max_rows
        self._max_held = max_held
        self._batch = ContinuousBatch(base)
        self._asked: dict[int, _Asked] = {}
        self._waiting: FairQueue[_Asked] = FairQueue()
        self._changed = threading.Condition()
        self._closing = False
        self._steps = self._tokens = 0
        self._thread = threading.Thread(target=self._run, name="foreword-engine", daemon=True)
        self._thread.start()

    async def stream(self, row: Row) -> AsyncIterator[Token]:
        """See `Engine`.

        Raises:
            GeometryMismatch, WrongBaseModel, UsageError: the prefix does not fit the base or the engine.
        """
        self._check(row.prefix)
        asked = _Asked(RunningRow(row, self._room(row)), asyncio.get_running_loop())
        with self._changed:
            if self._closing:
                raise EngineStopped("the engine is stopping and takes no new requests; try again later")
            self._waiting.put(row.owner, asked)
            self._changed.notify()
        try:
            while True:
                answer = await asked.answers.get()
                if isinstance(answer, Exception):
                    raise answer
                yield answer
                if answer.finish_reason is not None:
                    return
        finally:
            asked.gone = True

    def ready(self) -> bool:
        """See `Engine`."""
        return self._thread.is_alive() and not self._closing

    async def close(self) -> None:
        """See `Engine`."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        await asyncio.to_thread(self._thread.join)

    def measurements(self) -> Mapping[str, float]:
        """What runs and waits now, and steps and tokens since the start."""
        with self._changed:
            waiting = len(self._waiting)
        running = len(self._batch.rows)
        return {
            "rows_running": running,
            "rows_waiting": waiting,
            "batch_fill": running / self._max_rows,
            "steps": self._steps,
            "tokens": self._tokens,
        }

    def _check(self, prefix: Prefix | None) -> None:
        self._base.per_row(prefix, rows=1)
        if prefix is not None and prefix.template.placement == "infix":
            raise UsageError(
                "the prefix is an infix, which stands behind the source; engines put a prefix in front. "
                "`foreword evaluate` measures infixes"
            )

    def _room(self, row: Row) -> int:
        limit = self._base.text_limit(0 if row.prefix is None else row.prefix.length)
        room = row.sampling.max_tokens
        if limit is not None:
            room = min(room, limit - len(row.prompt_ids))
        if room < 1:
            raise WindowExceeded(
                f"the prompt has {len(row.prompt_ids)} tokens; {limit} fit in {self._base.name}, new tokens "
                "among them. Shorten it"
            )
        return room

    # -- in the engine's thread ------------------------------------------------------------------

    def _run(self) -> None:
        try:
            with packed_weights(is_prepared(self._base.model) and packing_pays(self._max_rows)):
                self._serve()
        except BaseException as error:
            self._give_up(error)
            raise

    def _give_up(self, error: BaseException) -> None:
        """Tell everybody, and take nothing more: without this thread nobody would ever be answered."""
        with self._changed:
            self._closing = True
            left = list(self._asked.values())
            while (asked := self._waiting.next()) is not None:
                left.append(asked)
        self._asked.clear()
        for asked in left:
            asked.answer(EngineStopped(f"the engine failed ({type(error).__name__}); restart the server"))

    def _serve(self) -> None:
        while True:
            with self._changed:
                while not (self._waiting or self._batch.rows or self._closing):
                    self._changed.wait()
                if self._closing and not self._waiting and not self._batch.rows:
                    return
            self._drop_gone()
            # One prompt a step: rows that run wait for a single prompt at most between two tokens.
            if (entering := self._next_that_fits()) is not None:
                self._join(entering)
            if self._batch.rows:
                self._step()

    def _drop_gone(self) -> None:
        staying = [row for row in self._batch.rows if not self._asked[id(row)].gone]
        for row in self._batch.rows:
            if row not in staying:
                del self._asked[id(row)]
        self._batch.keep(staying)

    def _next_that_fits(self) -> _Asked | None:
        rows = self._batch.rows
        if len(rows) >= self._max_rows:
            return None
        with self._changed:
            while (asked := self._waiting.first()) is not None:
                if asked.gone:
                    self._waiting.next()
                    continue
                most = max(row.most_columns for row in (*rows, asked.running))
                if rows and (len(rows) + 1) * most > self._max_held:
                    return None  # it is the next one when others have left
                return self._waiting.next()
        return None

    def _join(self, asked: _Asked) -> None:
        try:
            token = self._batch.join(asked.running)
        except Exception as error:  # whatever it is, it is this row's alone, and its caller is told
            asked.answer(error)
            return
        self._tokens += 1
        if token.finish_reason is None:
            self._asked[id(asked.running)] = asked
        asked.answer(token)

    def _step(self) -> None:
        rows = list(self._batch.rows)
        try:
            outcomes = self._batch.step()
        except Exception as error:  # every row of the batch is lost, and every caller is told
            self._batch.clear()
            for row in rows:
                self._asked.pop(id(row)).answer(error)
            return
        self._steps += 1
        self._tokens += sum(isinstance(outcome, Token) for outcome in outcomes)
        for row, outcome in zip(rows, outcomes, strict=True):
            ended = isinstance(outcome, Exception) or outcome.finish_reason is not None
            asked = self._asked.pop(id(row)) if ended else self._asked[id(row)]
            asked.answer(outcome)
