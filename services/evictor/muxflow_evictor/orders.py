"""Having an order carried out: the executor is asked until it has, and people are told when it began and ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine
from contextlib import aclosing
from pathlib import Path
from typing import Any, Final

import structlog
from msgspec.structs import replace

from muxflow.contracts import Attempt
from muxflow.contracts.devices import EvictionAlert, GpuSample
from muxflow_device.eviction import (
    EvictDone,
    EvictEnd,
    EvictOrder,
    EvictReply,
    EvictStep,
    ExecutorAway,
    OrderRefused,
    evict,
)
from muxflow_evictor.ledger import Eviction, Ledger

log = structlog.get_logger()

_MS_NS: Final = 1_000_000
_ANSWER_S: Final = 2.0
"""An executor that lives answers in a few milliseconds; one that does not by then is asked anew."""
_AGAIN_S: Final = 0.2
_LEDGER_S: Final = 0.1
"""How long an order waits for the disk. Protection does not depend on it: at worst an alert is lost with us."""


class Orders:
    """All orders of one node. What was decided is carried out, whoever is killed meanwhile."""

    def __init__(
        self,
        *,
        node: str,
        socket: Path,
        ledger: Ledger,
        tell: Callable[[EvictionAlert], Awaitable[None]],
        readings_after: Callable[[str, int], Awaitable[GpuSample | None]],
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
        on_over: Callable[[float], object],
    ) -> None:
        self.away: str | None = None
        """Why the executor did not answer last time."""
        self._node = node
        self._socket = socket
        self._ledger = ledger
        self._tell = tell
        self._readings_after = readings_after
        self._spawn = spawn
        self._on_over = on_over
        self._under_way: dict[Attempt, tuple[Eviction, tuple[asyncio.Task[None], ...]]] = {}
        """With what is to be done about their beginning: written down, told."""

    @property
    def under_way(self) -> int:
        """Evictions that are not over."""
        return len(self._under_way)

    async def resume(self) -> None:
        """Go on with what an earlier evictor had begun. Raises OSError when the ledger cannot be used."""
        for eviction in await asyncio.to_thread(self._ledger.open):
            log.info("going on with an eviction", attempt=str(eviction.attempt), gpu=eviction.gpu)
            self._enter(eviction)
            order = EvictOrder(
                gpu=eviction.gpu,
                attempts=(eviction.attempt,),
                cause=eviction.cause,
                hard=eviction.hard,
                breach=eviction.breach,
                workload=eviction.workload,
                decided_ns=eviction.decided_ns,
            )
            self._spawn(self._finish_earlier(order))

    async def carry_out(self, order: EvictOrder, *, before: GpuSample | None, here: Collection[Attempt]) -> bool:
        """Clear a device; returns when nothing is left there. False: the executor does not understand the order.

        `here` are the attempts that are known to be there: they are told of at once, whether the executor is or not.
        """
        for attempt in here:
            await self._begin(order, attempt, before)
        while True:
            if not await self._ask(order, before):
                return False
            # What has ended on its own before the executor was asked is not in its answer to an order for all.
            left = [e.attempt for e, _ in self._under_way.values() if (e.gpu, e.decided_ns) == _decision(order)]
            if not left:
                return True
            order = replace(order, attempts=tuple(left))

    async def _finish_earlier(self, order: EvictOrder) -> None:
        if not await self.carry_out(order, before=None, here=()):
            for attempt in order.attempts or ():
                self._over(order, EvictDone(attempt=attempt))

    async def _ask(self, order: EvictOrder, before: GpuSample | None) -> bool:
        while True:
            try:
                async with aclosing(evict(self._socket, order, answer_s=_ANSWER_S)) as answers:
                    async for answer in answers:
                        self._answers()
                        await self._take(answer, order, before)
            except ExecutorAway as error:
                self._does_not_answer(str(error))
                await asyncio.sleep(_AGAIN_S)
            except OrderRefused as error:
                log.error("the executor refuses an order", gpu=order.gpu, reason=str(error))  # noqa: TRY400
                return False
            else:
                return True

    async def _take(self, answer: EvictReply, order: EvictOrder, before: GpuSample | None) -> None:
        match answer:
            case EvictStep(attempt=attempt, step=step):
                log.info("eviction", attempt=str(attempt), gpu=order.gpu, step=step)
                await self._begin(order, attempt, before)
            case EvictDone():
                self._over(order, answer)
            case EvictEnd(attempts=0):
                log.debug("there is nothing to evict", gpu=order.gpu)
            case EvictEnd(attempts=attempts):
                log.info("order carried out", gpu=order.gpu, attempts=attempts)

    async def _begin(self, order: EvictOrder, attempt: Attempt, before: GpuSample | None) -> None:
        """Remember an eviction and tell of it, unless that was done already."""
        if attempt in self._under_way:
            return
        eviction = Eviction(
            gpu=order.gpu,
            attempt=attempt,
            cause=order.cause,
            hard=order.hard,
            breach=order.breach,
            workload=order.workload,
            before=before,
            decided_ns=order.decided_ns,
        )
        entering = self._spawn(self._write_down(eviction))
        self._enter(eviction, entering)
        await asyncio.wait({entering}, timeout=_LEDGER_S)

    def _enter(self, eviction: Eviction, *beginning: asyncio.Task[None]) -> None:
        telling = self._spawn(self._tell_begun(eviction, beginning))
        self._under_way[eviction.attempt] = eviction, (*beginning, telling)

    async def _tell_begun(self, eviction: Eviction, beginning: tuple[asyncio.Task[None], ...]) -> None:
        """Tell of it once it is written down, or the disk is slow: who is killed in between would tell it twice."""
        if beginning:
            await asyncio.wait(beginning, timeout=_LEDGER_S)
        await self._tell(eviction.begun(self._node))

    def _over(self, order: EvictOrder, done: EvictDone) -> None:
        found = self._under_way.pop(done.attempt, None)
        if found is None:
            return
        eviction, beginning = found
        now_ns = time.time_ns()
        gone_ns = order.decided_ns + int(done.total_ms * _MS_NS) if done.total_ms is not None else now_ns
        total_ms = max(0, gone_ns - eviction.decided_ns) / _MS_NS
        how = done.exit.describe() if done.exit is not None else "the executor knows of no such attempt"
        log.info("evicted", attempt=str(done.attempt), gpu=eviction.gpu, total_ms=round(total_ms, 1), how=how)
        self._on_over(total_ms)
        # In the background: neither the disk nor the next reading holds up what is still to be cleared.
        self._spawn(self._tell_over(eviction, beginning, total_ms))

    async def _tell_over(self, eviction: Eviction, beginning: tuple[asyncio.Task[None], ...], total_ms: float) -> None:
        after = await self._readings_after(eviction.gpu, time.clock_gettime_ns(time.CLOCK_BOOTTIME))
        await asyncio.gather(*beginning)  # a slow disk writes nothing down that was struck already
        await self._tell(eviction.over(self._node, after=after, total_ms=total_ms))
        await asyncio.to_thread(self._ledger.strike, eviction)

    async def _write_down(self, eviction: Eviction) -> None:
        try:
            await asyncio.to_thread(self._ledger.enter, eviction)
        except OSError as error:
            log.error("cannot remember an eviction", attempt=str(eviction.attempt), error=str(error))  # noqa: TRY400

    def _does_not_answer(self, reason: str) -> None:
        if self.away is None:
            log.error("the executor does not answer; asking on", reason=reason)
        self.away = reason

    def _answers(self) -> None:
        if self.away is not None:
            log.info("the executor answers")
        self.away = None


def _decision(order: EvictOrder) -> tuple[str, int]:
    return order.gpu, order.decided_ns
