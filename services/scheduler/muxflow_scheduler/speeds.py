"""Predicted speeds of jobs beside online workloads, as the predictor answers. Nothing waits for it for long.

A pair is asked for when a problem has it: at once while nothing is known of it, and again when what is known may be out
of date. Where the predictor is away, what is known is used, and the rest is assumed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Final

import msgspec
import structlog

from muxflow.bus import Bus, BusError, Message, QueryError, Reader
from muxflow.contracts import ALL_TENANTS, Pair, Speed, SpeedModel, SpeedsQuery, SpeedsReply
from muxflow.contracts.catalogue import QUERY_SPEEDS, SPEEDS
from muxflow_decisions import matching
from muxflow_decisions.matching import Measured, Spot

log = structlog.get_logger()

_AT_ONCE: Final = 2000
"""Pairs of one question: `SpeedsQuery`."""
_ANSWER_S: Final = 5.0
_AWAY_S: Final = 5.0
"""After a question that nobody answered, none is asked for so long."""
_KEPT: Final = 500_000
"""Pairs that are remembered, the ones asked for last."""

PairKey = tuple[Measured, Spot]


class _Known(msgspec.Struct):
    speed: Speed
    generation: int
    asked_s: float


class Speeds:
    """A cache over the predictor's answers."""

    def __init__(self, bus: Bus, *, wanted: bool, refresh_s: float) -> None:
        self._bus = bus
        self._wanted = wanted
        self._refresh_s = refresh_s
        self._known: dict[PairKey, _Known] = {}
        self._generation = 0
        self._model: str | None = None
        self._away_until_s = 0.0
        self._complained = False
        self._open: dict[PairKey, None] = {}
        """Pairs to ask for."""
        self._asking: asyncio.Task[None] | None = None
        self._reader: Reader | None = None

    async def load(self) -> None:
        """Listen for new models."""
        if self._wanted:
            self._reader = await self._bus.read(SPEEDS, self._model_told, start="last")

    async def close(self) -> None:
        """Ask no more."""
        if self._reader is not None:
            await self._reader.stop()
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait((self._asking,))

    def get(self, measured: Measured, spot: Spot) -> Speed | None:
        """What is known of a pair."""
        found = self._known.get((measured, spot))
        return found.speed if found else None

    def table(self, pairs: Iterable[PairKey]) -> matching.Speeds:
        """Put together what is known of these pairs, for a solve."""
        return matching.Speeds.of({pair: _plain(self._known[pair].speed) for pair in pairs if pair in self._known})

    async def learn(self, pairs: Iterable[PairKey], *, patience_s: float) -> None:
        """Have pairs asked for that are unknown or out of date; wait a little for the unknown ones."""
        now_s = time.monotonic()
        if not self._wanted or now_s < self._away_until_s:
            return
        unknown = False
        for pair in pairs:
            found = self._known.get(pair)
            if found is None:
                unknown = True
            elif found.generation >= self._generation and now_s - found.asked_s < self._refresh_s:
                continue
            self._open[pair] = None
        if self._open and self._asking is None:
            self._asking = asyncio.get_running_loop().create_task(self._ask())
        if unknown and self._asking is not None:
            await asyncio.wait((self._asking,), timeout=patience_s)

    async def _ask(self) -> None:
        try:
            while self._open:
                batch = list(islice(self._open, _AT_ONCE))
                query = SpeedsQuery(pairs=tuple(_asked(*pair) for pair in batch))
                reply: SpeedsReply = await self._bus.request(
                    QUERY_SPEEDS, query, timeout_s=_ANSWER_S, tenant=ALL_TENANTS
                )
                for pair in batch:
                    del self._open[pair]
                self._take(dict(zip(batch, reply.speeds, strict=True)), reply.generation)
                self._complained = False
        except (BusError, QueryError, ValueError) as error:
            self._away_until_s = time.monotonic() + _AWAY_S
            self._open.clear()
            if not self._complained:
                self._complained = True
                log.warning("no predictions, speeds are assumed", reason=str(error) or type(error).__name__)
        finally:
            self._asking = None

    def _take(self, answers: Mapping[PairKey, Speed], generation: int) -> None:
        now_s = time.monotonic()
        self._generation = generation  # one that falls is that of a predictor which has started anew
        for pair, speed in answers.items():
            self._known.pop(pair, None)  # so that the order is that of asking
            self._known[pair] = _Known(speed, generation, now_s)
        while len(self._known) > _KEPT:
            del self._known[next(iter(self._known))]

    def _model_told(self, message: Message[SpeedModel]) -> None:
        """A new model answers otherwise: what is known is out of date, and better than nothing meanwhile."""
        if self._model not in (None, message.event.version):
            for found in self._known.values():
                found.asked_s = float("-inf")
        self._model = message.event.version


def _asked(measured: Measured, spot: Spot) -> Pair:
    key, memory_bytes = measured
    return Pair(
        offline_key=key,
        memory_bytes=memory_bytes,
        gpu_kind=spot.kind,
        gpu_memory_bytes=spot.memory_bytes,
        workload=spot.workload,
        sm_share_pct=spot.sm_share_pct,
    )


def _plain(speed: Speed) -> matching.Speed:
    return matching.Speed(
        min(int(1000 * speed.normalized_throughput), 65_534), min(int(1000 * speed.fits_probability), 1000)
    )
