"""The local engine: transformers in this process, one continuous batch for the rows of all owners.

A thread drives the model; rows come from and tokens go to asyncio, where the gateway lives. Each round of the
thread is a step of the batch, as the scheduler plans it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from foreword.base.base_model import BaseModel
from foreword.base.device_memory import is_out_of_memory
from foreword.base.prepacked_linear import is_prepared, prepacked_weights, prepacking_pays
from foreword.errors import EngineOutOfMemory, EngineStopped, UnsupportedArchitecture
from foreword.serving.engine.continuous_batch import ContinuousBatch, RunningRow
from foreword.serving.engine.protocol import STOPPING, Row, Token, check_row
from foreword.serving.engine.scheduler import Scheduler

MAX_ROWS = 32
"""Rows of the batch, unless it is said otherwise: more give a CPU no more tokens a second."""

MAX_HELD = 65_536
"""Tokens, virtual ones among them, whose keys and values are held; bounds memory."""

STEP_TOKENS = {"cpu": 128}
"""Tokens of a step at most, by kind of device. A CPU reads so many in a fifth of a second; rows that decode
wait no longer than that between two tokens."""
STEP_TOKENS_ELSEWHERE = 2048

COLUMNS_PER_HIDDEN = 6
"""Columns, as a multiple of the hidden size, to which a token attends in the time of its other layers: for
each hidden unit, a usual layer has twelve times the hidden size of weights, and two numbers a column."""


@dataclass(eq=False)
class Reader:
    """Who takes the tokens of a row, on which event loop."""

    loop: asyncio.AbstractEventLoop
    tokens: asyncio.Queue[Token | Exception] = field(default_factory=asyncio.Queue)


class LocalEngine:
    """Continuous batching over one base model: rows of all owners, each behind its own prefix."""

    def __init__(
        self,
        base: BaseModel,
        *,
        max_rows: int = MAX_ROWS,
        max_held: int = MAX_HELD,
        step_tokens: int | None = None,
    ) -> None:
        """
        Args:
            max_rows: rows that run at once; others wait.
            max_held: columns of keys and values of the rows that run; a row that alone needs more still runs.
            step_tokens: tokens that a step reads at most; None: as the device computes them in a moment.

        Raises:
            UnsupportedArchitecture: the base's cache does not keep every token as attention sees it
                (sliding windows, latent attention, states of a hybrid), or it is an encoder-decoder.
        """
        if not base.cache_takes_prefixes or not base.packs_rows:
            raise UnsupportedArchitecture(
                f"{base.name} can't be served by the local engine: it needs a decoder-only model whose cache "
                "keeps the keys and values of every token in every layer and that takes position ids; "
                "`foreword generate` runs this one"
            )
        if step_tokens is None:
            step_tokens = STEP_TOKENS.get(base.device.type, STEP_TOKENS_ELSEWHERE)
        self._base = base
        self._max_rows = max_rows
        self._batch = ContinuousBatch(base)
        columns = COLUMNS_PER_HIDDEN * base.model.config.get_text_config(decoder=True).hidden_size
        self._scheduler = Scheduler(
            max_rows=max_rows, max_held=max_held, step_tokens=step_tokens, columns_per_token=columns
        )
        self._readers: dict[RunningRow, Reader] = {}
        self._numbers = itertools.count()
        self._arrived: list[RunningRow] = []
        self._unsent: list[tuple[RunningRow, Token | Exception]] = []
        self._changed = threading.Condition()
        self._closing = False
        self._steps = self._tokens = 0
        self._thread = threading.Thread(target=self._run, name="foreword-engine", daemon=True)
        self._thread.start()

    async def stream(self, row: Row) -> AsyncIterator[Token]:
        """See `Engine`. Raises as `check_row`, too; and `EngineOutOfMemory`."""
        running = RunningRow(row, check_row(self._base, row), next(self._numbers))
        reader = Reader(asyncio.get_running_loop())
        with self._changed:
            if self._closing:
                raise EngineStopped(STOPPING)
            self._readers[running] = reader
            self._arrived.append(running)
            self._changed.notify()
        try:
            while True:
                token = await reader.tokens.get()
                if isinstance(token, Exception):
                    raise token
                yield token
                if token.finish_reason is not None:
                    return
        finally:
            running.gone = True
            self._readers.pop(running, None)

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
        """What runs and waits now, and steps, tokens and rows that were put out since the start."""
        running = list(self._scheduler.running)
        return {
            "rows_running": len(running),
            "rows_waiting": self._scheduler.waiting + len(self._arrived),
            "batch_fill": len(running) / self._max_rows,
            "columns_held": sum(row.room for row in running),
            "steps": self._steps,
            "tokens": self._tokens,
            "preemptions": self._scheduler.preemptions,
        }

    # -- in the engine's thread ------------------------------------------------------------------

    def _run(self) -> None:
        try:
            with prepacked_weights(is_prepared(self._base.model) and prepacking_pays(self._max_rows)):
                while self._wait():
                    self._guarded_round()
        except BaseException as error:
            self._give_up(error)
            raise

    def _wait(self) -> bool:
        """Until there is something to do; whether there is."""
        with self._changed:
            while not (busy := self._busy()) and not self._closing:
                self._changed.wait()
            return busy

    def _busy(self) -> bool:
        scheduler = self._scheduler
        return bool(self._arrived or scheduler.waiting or scheduler.running or self._unsent)

    def _guarded_round(self) -> None:
        """A step; an error costs the rows that it met, and no lack of memory ends the thread."""
        failed: Exception | None = None
        try:
            self._round()
        except Exception as error:
            # Its traceback holds whatever the step had made. It is let go before memory is asked for again.
            failed = error.with_traceback(None)
        if failed is None:
            return
        if is_out_of_memory(failed):
            self._retreat()
        else:
            self._fail(failed)

    def _round(self) -> None:
        scheduler, batch = self._scheduler, self._batch
        self._send()
        self._take_in()
        scheduler.drop_gone()
        scheduler.admit()
        scheduler.make_room()
        batch.keep(scheduler.running)
        if not scheduler.running:
            return
        outcomes = batch.step(scheduler.reads())
        self._unsent += outcomes  # before anything else can fail
        self._steps += 1
        self._tokens += sum(isinstance(outcome, Token) for _, outcome in outcomes)
        for row, outcome in outcomes:
            row.gone |= isinstance(outcome, Exception) or outcome.finish_reason is not None
        scheduler.went_well()
        scheduler.drop_gone()
        batch.keep(scheduler.running)
        self._send()

    def _take_in(self) -> None:
        """What was asked for since the last step."""
        with self._changed:
            while self._arrived:
                self._scheduler.put(self._arrived.pop(0))

    def _retreat(self) -> None:
        """Memory ran out: go on with less, and read what was put out again later."""
        torch.cuda.empty_cache()  # does nothing where there is no GPU
        scheduler = self._scheduler
        if not scheduler.retreat():
            tokens = sum(len(row.text) for row in scheduler.running)
            self._fail(
                EngineOutOfMemory(
                    f"memory does not suffice for a text of {tokens} tokens and its prefix, with nothing "
                    "beside it; shorten it, or give the server more memory"
                )
            )
            return
        try:
            self._batch.keep(scheduler.running)
        except Exception:  # it should not need any memory. Else all that is held goes, and is read again
            self._batch.clear()

    def _fail(self, error: Exception) -> None:
        """Tell all rows that run, and let them go."""
        self._batch.clear()
        for row in self._scheduler.running:
            row.gone = True
            self._unsent.append((row, error))
        self._scheduler.drop_gone()
        self._send()

    def _give_up(self, error: BaseException) -> None:
        """Tell everybody, and take nothing more: without this thread nobody would ever be answered."""
        with self._changed:
            self._closing = True
        self._take_in()
        stopped = EngineStopped(f"the engine failed ({type(error).__name__}); restart the server")
        self._unsent += [(row, stopped) for row in self._scheduler.everyone()]
        self._send()

    def _send(self) -> None:
        """Hand over what steps gave: in one call for each event loop, whose thread this one waits for."""
        by_loop: defaultdict[asyncio.AbstractEventLoop, list[tuple[Reader, Token | Exception]]]
        by_loop = defaultdict(list)
        for row, outcome in self._unsent:
            if (reader := self._readers.get(row)) is not None:
                by_loop[reader.loop].append((reader, outcome))
        for loop, sent in by_loop.items():
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody reads them any more
                loop.call_soon_threadsafe(_deliver, sent)
        self._unsent = []


def _deliver(sent: Sequence[tuple[Reader, Token | Exception]]) -> None:
    for reader, outcome in sent:
        reader.tokens.put_nowait(outcome)
