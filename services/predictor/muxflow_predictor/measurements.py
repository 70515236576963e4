"""The measurements that are kept: bounded, and in the object store, so that they outlive profiles and restarts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec
import structlog

from muxflow.bus import ObjectDamaged, ObjectStore
from muxflow_decisions.speed import History, MeasuredPair, MeasuredPolicy, PairName, absorb, learn
from muxflow_decisions.speed.features import PAIRS

log = structlog.get_logger()

OBJECT: Final = "measured-pairs"


class Measurements:
    """Rows by pair."""

    def __init__(self, policy: MeasuredPolicy, *, rows_max: int) -> None:
        self._policy = policy
        self._rows_max = rows_max
        self._pairs: dict[PairName, tuple[MeasuredPair, ...]] = {}
        self._rows = 0
        self._history: History | None = None
        self.new_rows = 0
        """New ones since `begin_training`."""
        self.unsaved = False

    def __len__(self) -> int:
        return self._rows

    def of(self, name: PairName) -> tuple[MeasuredPair, ...]:
        """Give those of one pair, oldest first."""
        return self._pairs.get(name, ())

    def all(self) -> tuple[MeasuredPair, ...]:
        """Give them all."""
        return tuple(row for rows in self._pairs.values() for row in rows)

    @property
    def history(self) -> History:
        """What they say of jobs and services."""
        if self._history is None:
            self._history = learn(self.all(), PAIRS.expected)
        return self._history

    def take(self, row: MeasuredPair) -> bool:
        """Take one in; False if it was known."""
        before = self.of(row.name)
        absorbed = absorb(before, row, self._policy)
        if not absorbed.changed:
            return False
        self._pairs.pop(row.name, None)
        self._pairs[row.name] = absorbed.rows  # the pair that was measured last is the last one
        self._rows += len(absorbed.rows) - len(before)
        self._history = None
        self.new_rows += absorbed.new
        self.unsaved = True
        while self._rows > self._rows_max and len(self._pairs) > 1:
            self._rows -= len(self._pairs.pop(next(iter(self._pairs))))
        return True

    def begin_training(self) -> int:
        """Count new ones from here; gives how many there were."""
        new_rows, self.new_rows = self.new_rows, 0
        return new_rows

    async def load(self, store: ObjectStore) -> None:
        """Take in what an earlier predictor has kept. What cannot be read is named in the log, and left."""
        try:
            data = await store.get(OBJECT)
            kept = msgspec.json.decode(data, type=list[MeasuredPair]) if data is not None else []
        except (ObjectDamaged, msgspec.DecodeError) as error:
            log.error("measurements are lost", object=OBJECT, error=str(error))  # noqa: TRY400
            return
        self.restore(kept)

    def restore(self, rows: Iterable[MeasuredPair]) -> None:
        """Take in rows that were kept; they are not new."""
        for row in sorted(rows, key=lambda row: row.time_ns):
            self.take(row)
        self.new_rows, self.unsaved = 0, False

    async def save(self, store: ObjectStore) -> None:
        """Keep them. Raises `BusError`."""
        self.unsaved = False
        try:
            await store.put(OBJECT, msgspec.json.encode(self.all()))
        except BaseException:
            self.unsaved = True
            raise
