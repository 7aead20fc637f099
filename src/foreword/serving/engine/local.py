"""The local engine: transformers in this process, one continuous batch for the rows of all owners.

A thread drives the model; rows come from and tokens go to asyncio, where the gateway lives.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Mapping

from foreword.base.base_model import BaseModel
from foreword.base.prepacked_linear import is_prepared, prepacked_weights, prepacking_pays
from foreword.errors import EngineStopped, UnsupportedArchitecture
from foreword.serving.engine.continuous_batch import ContinuousBatch, RunningRow
from foreword.serving.engine.protocol import STOPPING, Row, Token, check_row
from foreword.serving.engine.scheduler import FairQueue, PendingRow, next_that_fits

MAX_ROWS = 32
"""Rows of the batch, unless it is said otherwise: more give a CPU no more tokens a second."""

MAX_HELD = 65_536
"""Tokens, virtual ones among them, whose keys and values are held; bounds memory."""


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
                (sliding windows, latent attention, states of a hybrid), or it is an encoder-decoder.
        """
        if not base.cache_takes_prefixes or not base.takes_positions:
            raise UnsupportedArchitecture(
                f"{base.name} can't be served by the local engine: it needs a decoder-only model whose cache "
                "keeps the keys and values of every token in every layer and that takes position ids; "
                "`foreword generate` runs this one"
            )
        self._base = base
        self._max_rows = max_rows
        self._max_held = max_held
        self._batch = ContinuousBatch(base)
        self._in_batch: dict[RunningRow, PendingRow] = {}
        self._waiting: FairQueue[PendingRow] = FairQueue()
        self._changed = threading.Condition()
        self._closing = False
        self._steps = self._tokens = 0
        self._thread = threading.Thread(target=self._run, name="foreword-engine", daemon=True)
        self._thread.start()

    async def stream(self, row: Row) -> AsyncIterator[Token]:
        """See `Engine`. Raises as `check_row`, too."""
        pending = PendingRow(RunningRow(row, check_row(self._base, row)), asyncio.get_running_loop())
        with self._changed:
            if self._closing:
                raise EngineStopped(STOPPING)
            self._waiting.put(row.owner, pending)
            self._changed.notify()
        try:
            while True:
                token = await pending.tokens.get()
                if isinstance(token, Exception):
                    raise token
                yield token
                if token.finish_reason is not None:
                    return
        finally:
            pending.gone = True

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

    # -- in the engine's thread ------------------------------------------------------------------

    def _run(self) -> None:
        try:
            with prepacked_weights(is_prepared(self._base.model) and prepacking_pays(self._max_rows)):
                self._serve()
        except BaseException as error:
            self._give_up(error)
            raise

    def _give_up(self, error: BaseException) -> None:
        """Tell everybody, and take nothing more: without this thread nobody would ever be answered."""
        with self._changed:
            self._closing = True
            left = list(self._in_batch.values())
            while (pending := self._waiting.next()) is not None:
                left.append(pending)
        self._in_batch.clear()
        for pending in left:
            pending.send(EngineStopped(f"the engine failed ({type(error).__name__}); restart the server"))

    def _serve(self) -> None:
        while True:
            with self._changed:
                while not (self._waiting or self._batch.rows or self._closing):
                    self._changed.wait()
                if self._closing and not self._waiting and not self._batch.rows:
                    return
            self._drop_gone()
            with self._changed:
                entering = next_that_fits(
                    self._waiting, self._batch.rows, max_rows=self._max_rows, max_held=self._max_held
                )
            # One prompt a step: rows that run wait for a single prompt at most between two tokens.
            if entering is not None:
                self._prefill(entering)
            if self._batch.rows:
                self._step()

    def _drop_gone(self) -> None:
        gone = {row for row in self._batch.rows if self._in_batch[row].gone}
        for row in gone:
            del self._in_batch[row]
        self._batch.keep([row for row in self._batch.rows if row not in gone])

    def _prefill(self, pending: PendingRow) -> None:
        try:
            token = self._batch.prefill(pending.running)
        except Exception as error:  # whatever it is, it is this row's alone, and goes to its caller
            pending.send(error)
            return
        self._tokens += 1
        if token.finish_reason is None:
            self._in_batch[pending.running] = pending
        pending.send(token)

    def _step(self) -> None:
        rows = list(self._batch.rows)
        try:
            outcomes = self._batch.step()
        except Exception as error:  # every row of the batch is lost, and every caller gets this
            self._batch.clear()
            for row in rows:
                self._in_batch.pop(row).send(error)
            return
        self._steps += 1
        self._tokens += sum(isinstance(outcome, Token) for outcome in outcomes)
        for row, outcome in zip(rows, outcomes, strict=True):
            ended = isinstance(outcome, Exception) or outcome.finish_reason is not None
            pending = self._in_batch.pop(row) if ended else self._in_batch[row]
            pending.send(outcome)
