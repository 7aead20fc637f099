"""Which rows run, which wait, and how much of each one's text the next step reads. No tensors, no threads.

Places and columns of the batch are divided among the owners who want them. An owner alone may have all; when
another one comes, rows of whoever has most are put out until both have alike. A row that is put out waits at
the front of its owner's line, keeps the tokens that it has, and is read anew when it comes back: its reader
sees a pause and nothing else.

Rows can be too large to be divided alike: one that fills the columns by itself, or two of two owners. Owners
who ask for little do not wait for those: columns are kept for them beside the others (`SMALL`). Other owners
who have nothing yet take turns with whoever holds more than a fair share, and at least a fourth of the
columns (`LARGE`), be it a single row.

That this comes to an end: a row is put out for another owner only if nothing of it was read yet, or after it
has made `TURN` tokens since it came; where it holds more than a fair share, after as many tokens as it was
read in steps. So rows may change places for as long as they like, each turn brings its row nearer to its end,
and a row is read anew in about half of its steps at most. What is kept for small rows does not count where
others ask for columns, so no stream of small ones keeps a large one out. When memory runs out, the row that
was asked for first stays; it ends one day, and then the next one is the first.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from foreword.serving.engine.continuous_batch import RunningRow

Item = TypeVar("Item")

TURN = 8
"""New tokens that a row may make before it has to leave its place to another owner's."""

SMALL, KEPT = 32, 8
"""An owner whose rows come to have a 32nd of the columns at most, at their ends, is let in beside all others;
such owners have an eighth more of the columns for themselves."""

LARGE = 4
"""An owner with less than a fourth of the columns does not have to take turns: where many have a part, one of
their rows ends soon, and to read rows anew again and again would cost all of them time."""

LEAST_STEP = 16
"""Tokens of a step below which no lack of memory brings it."""

ATTEMPTS = 3
"""Times in a row that a row alone may find no memory: something else on the machine can have taken it."""

STEPS_TO_RECOVER = 64
"""Steps that go well after memory ran out, before twice as much is tried."""


class FairQueue(Generic[Item]):
    """Queues by owner, who take turns."""

    def __init__(self) -> None:
        self._queues: dict[str, deque[Item]] = {}

    def __len__(self) -> int:
        return sum(map(len, list(self._queues.values())))  # asked from other threads, too

    def put(self, owner: str, item: Item) -> None:
        """Behind this owner's other rows."""
        self._queues.setdefault(owner, deque()).append(item)

    def put_back(self, owner: str, item: Item) -> None:
        """In front of this owner's other rows."""
        self._queues.setdefault(owner, deque()).appendleft(item)

    def owners(self) -> list[str]:
        """Those who have something waiting, in the order of their turns."""
        return list(self._queues)

    def first(self, owner: str) -> Item:
        """What `next` would give, still waiting."""
        return self._queues[owner][0]

    def drop(self, unwanted: Callable[[Item], bool]) -> None:
        """Let go of some, whatever their place."""
        left = {
            owner: deque(item for item in queue if not unwanted(item))
            for owner, queue in self._queues.items()
        }
        self._queues = {owner: queue for owner, queue in left.items() if queue}

    def clear(self) -> list[Item]:
        """Everything; it does not wait any more."""
        queues, self._queues = self._queues, {}
        return [item for queue in queues.values() for item in queue]

    def next(self, owner: str) -> Item:
        """The first row of an owner, who then goes to the end."""
        queue = self._queues.pop(owner)
        item = queue.popleft()
        if queue:
            self._queues[owner] = queue
        return item


class Scheduler:
    """The rows of all owners, from their request to their end.

    Attributes:
        running: in the order in which they came.
        preemptions: rows that were put out, since the start.
    """

    def __init__(
        self, *, max_rows: int, max_held: int, step_tokens: int, columns_per_token: float = math.inf
    ) -> None:
        """
        Args:
            max_rows: rows that run at once.
            max_held: columns of keys and values of all of them, without those kept for small rows; a row
                that alone needs more still runs.
            step_tokens: most tokens of a step, unless more rows than that decode.
            columns_per_token: so many columns that a token attends to take as long as its other layers. A
                step reads fewer tokens that have many columns before them, and so takes no longer.
        """
        self.running: list[RunningRow] = []
        self.preemptions = 0
        self._waiting: FairQueue[RunningRow] = FairQueue()
        self._max_rows = max_rows
        self._most = (max_held, step_tokens)
        self._held_limit, self._step_limit = self._most
        self._columns_per_token = columns_per_token
        self._went_well = self._alone_in_vain = 0

    @property
    def waiting(self) -> int:
        """How many rows wait."""
        return len(self._waiting)

    @property
    def held(self) -> int:
        """Columns that the running rows have."""
        return _columns(self.running)

    def put(self, row: RunningRow) -> None:
        """A row that was asked for."""
        self._waiting.put(row.owner, row)

    def drop_gone(self) -> None:
        """Rows that have ended or that nobody wants leave, those that wait among them."""
        self.running = [row for row in self.running if not row.gone]
        self._waiting.drop(lambda row: row.gone)

    def everyone(self) -> list[RunningRow]:
        """All rows, those that run and those that wait; none is here any more."""
        rows, self.running = self.running + self._waiting.clear(), []
        return rows

    def admit(self) -> None:
        """Let in what there is room for, or what rows of others have to make room for."""
        while (entering := self._next()) is not None:
            victims = self._make_way(entering)
            if victims is None:
                break  # it stays the next one, or a long row would wait for ever behind short ones
            for row in victims:
                self._preempt(row)
            self._enter(entering)
        for owner in self._waiting.owners():
            entering = self._waiting.first(owner)
            if len(self.running) < self._max_rows and owner in self._small_owners([*self.running, entering]):
                self._enter(entering)

    def make_room(self) -> None:
        """Put rows out while the next tokens of all would need more columns than there are."""
        while _columns(rows := self._counted(self.running)) > self._held_limit:
            if (row := _last_of_largest(rows)) is None:
                return
            self._preempt(row)

    def _enter(self, row: RunningRow) -> None:
        """Let in the first row of an owner."""
        self._waiting.next(row.owner)
        self.running.append(row)

    def _preempt(self, row: RunningRow) -> None:
        """Put a running row out, to wait in front of its owner's others."""
        row.made_before = row.made  # it may come back before the engine has let it go: a turn begins anew
        self.running.remove(row)
        self._waiting.put_back(row.owner, row)
        self.preemptions += 1

    def reads(self) -> dict[RunningRow, int]:
        """How many tokens of each running row the next step reads.

        Rows that decode read one. What is left of the step is divided evenly among the owners, by the work
        that tokens are, and within an owner half goes to the oldest text and the other half to the shortest
        ones: so a long prompt goes on, and stops neither another owner's prompt nor a short one.
        """
        decoding = [row for row in self.running if row.decodes]
        reads = dict.fromkeys(decoding, 1)
        budget = max(self._step_limit - int(sum(map(self._work, decoding))), LEAST_STEP)
        by_owner: dict[str, list[RunningRow]] = {}
        for row in self.running:
            if not row.decodes:
                by_owner.setdefault(row.owner, []).append(row)
        wanted = [math.ceil(sum(row.unread * self._work(row) for row in rows)) for rows in by_owner.values()]
        for rows, share in zip(by_owner.values(), divide(budget, wanted), strict=True):
            oldest = min(rows, key=lambda row: row.number)
            for_oldest = min(oldest.unread * self._work(oldest), share if len(rows) == 1 else -(-share // 2))
            left = share - for_oldest
            for row in sorted(rows, key=lambda row: row.unread):
                if row is not oldest and (count := self._tokens_of(left, row)) > 0:
                    reads[row] = count
                    left -= count * self._work(row)
            # One at least, whatever it takes, or nothing would go on where many owners share a short step.
            reads[oldest] = max(self._tokens_of(for_oldest + left, oldest), 1)
        return reads

    def _work(self, row: RunningRow) -> float:
        """What reading a token of a row takes, in tokens that attend to nothing."""
        return 1 + (row.row.prefix_length + row.read) / self._columns_per_token

    def _tokens_of(self, work: float, row: RunningRow) -> int:
        """How many unread tokens of a row so much work reads."""
        return min(row.unread, int(work / self._work(row) + 1e-6))  # what was multiplied may come out lower

    # -- memory ------------------------------------------------------------------------------------

    def retreat(self) -> bool:
        """Memory ran out though no more is held than may be: the younger half of the rows is put out.

        Half as many tokens are read in a step from now on, and no more is held than the others hold, until
        steps go well for a while.

        Returns:
            Whether it is worth another attempt: not if a row alone has had some, in the shortest steps.
        """
        self._went_well = 0
        if len(self.running) <= 1 and self._step_limit <= LEAST_STEP:
            self._alone_in_vain += 1
            if self._alone_in_vain == ATTEMPTS:
                self._alone_in_vain = 0
                return False
        self._step_limit = max(self._step_limit // 2, LEAST_STEP)
        by_age = sorted(self.running, key=lambda row: row.number)
        for row in reversed(by_age[(len(by_age) + 1) // 2 :]):
            self._preempt(row)
        self._held_limit = max(self.held, 1)
        return True

    def went_well(self) -> None:
        """A step was made: after some of them, more is tried again."""
        self._alone_in_vain, (most_held, most_tokens) = 0, self._most
        if (self._held_limit, self._step_limit) == self._most:
            return
        self._went_well += 1
        if self._went_well >= STEPS_TO_RECOVER:
            self._went_well = 0
            self._held_limit = min(2 * self._held_limit, most_held)
            self._step_limit = min(2 * self._step_limit, most_tokens)

    @property
    def _recovers(self) -> bool:
        """Whether less may be held than usual, since memory ran out: rows stay where they are if they can."""
        return self._held_limit < self._most[0]

    # -- whose turn it is --------------------------------------------------------------------------

    def _next(self) -> RunningRow | None:
        """Of the owners who wait, the first row of the one with the fewest running; among those, by turns."""
        running = Counter(row.owner for row in self.running)
        owners = self._waiting.owners()
        return self._waiting.first(min(owners, key=lambda owner: running[owner])) if owners else None

    def _make_way(self, entering: RunningRow) -> list[RunningRow] | None:
        """Rows to be put out so that this one can run; None: it has to wait."""
        rows, out = list(self.running), []
        while not self._fits(rows, entering):
            victim = self._victim(rows, entering, by_rows=len(rows) >= self._max_rows)
            if victim is None:
                return None
            rows.remove(victim)
            out.append(victim)
        return out

    def _fits(self, rows: Sequence[RunningRow], entering: RunningRow) -> bool:
        if len(rows) >= self._max_rows:
            return False
        counted = self._counted([*rows, entering])
        if entering not in counted or len(counted) == 1:
            return True
        # An eighth stays free, or it would be put out again by the next tokens of the others.
        return _columns(counted) <= self._held_limit - self._held_limit // 8

    def _small_owners(self, rows: Sequence[RunningRow]) -> set[str]:
        """The owners of these rows who run in the columns that are kept for small ones; the first come first.

        None after memory ran out, until as much as before is tried again.
        """
        small: set[str] = set()
        if self._recovers:
            return small
        of_owner: Counter[str] = Counter()
        for row in rows:
            of_owner[row.owner] += row.most_room
        left = self._held_limit // KEPT
        for owner, columns in of_owner.items():
            if columns <= min(left, self._held_limit // SMALL):
                small.add(owner)
                left -= columns
        return small

    def _counted(self, rows: Sequence[RunningRow]) -> list[RunningRow]:
        """Those of the rows that share the columns which are not kept for small ones."""
        small = self._small_owners(rows)
        return [row for row in rows if row.owner not in small]

    def _victim(
        self, rows: Sequence[RunningRow], entering: RunningRow, *, by_rows: bool
    ) -> RunningRow | None:
        """The youngest row of the owner who has most, if that one has no less without it than this one with.

        Or, of columns, one that has had its turn, if that owner has more than a fair share and this one none.

        Args:
            by_rows: places are scarce; else columns are.
        """
        size: Callable[[RunningRow], int] = (lambda row: 1) if by_rows else (lambda row: row.room)
        of_owner: Counter[str] = Counter()
        if not by_rows:
            rows = [row for row in self._counted([*rows, entering]) if row is not entering]
        for row in rows:
            of_owner[row.owner] += size(row)
        owner, most = of_owner.most_common(1)[0]
        if owner == entering.owner:
            return None
        theirs = [row for row in rows if row.owner == owner]
        removable = [row for row in theirs if row.read == 0 or row.made - row.made_before >= TURN]
        if removable:
            youngest = max(removable, key=lambda row: row.number)
            if most - size(youngest) >= of_owner[entering.owner] + size(entering):
                return youngest
        share = self._held_limit / min(len(of_owner) + 1, LARGE)
        if by_rows or self._recovers or entering.owner in of_owner or most <= share:
            return None
        turned = [row for row in theirs if row.made - row.made_before >= self._turn(row)]
        return max(turned, key=lambda row: row.number, default=None)

    def _turn(self, row: RunningRow) -> int:
        """New tokens of a row before an owner who has none gets its columns: one for each step of reading."""
        read_first = len(row.text) - (row.made - row.made_before)
        return max(TURN, read_first // self._most[1])


def _columns(rows: Sequence[RunningRow]) -> int:
    return sum(row.room for row in rows)


def _last_of_largest(rows: Sequence[RunningRow]) -> RunningRow | None:
    """The youngest row of the owner who holds most; never the oldest row of all."""
    oldest = min(rows, key=lambda row: row.number)
    of_owner: Counter[str] = Counter()
    for row in rows:
        of_owner[row.owner] += row.room
    for owner, _ in of_owner.most_common():
        theirs = [row for row in rows if row.owner == owner and row is not oldest]
        if theirs:
            return max(theirs, key=lambda row: row.number)
    return None


def divide(whole: int, wanted: Sequence[int]) -> list[int]:
    """Parts of `whole`, as even as can be, none larger than wanted."""
    parts, left = [0] * len(wanted), whole
    order = sorted(range(len(wanted)), key=lambda place: wanted[place])
    for done, place in enumerate(order):
        parts[place] = min(wanted[place], left // (len(order) - done))
        left -= parts[place]
    return parts
