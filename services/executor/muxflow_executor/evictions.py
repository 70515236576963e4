"""Orders of the evictor, over the socket of the node: what they are about, and what is told of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterable

import structlog

from muxflow.contracts import Attempt
from muxflow_device.eviction import EvictDone, EvictEnd, EvictOrder, EvictRefused, EvictReply, EvictStep
from muxflow_executor.attempts import AttemptStore, Ended
from muxflow_executor.process_runner import ProcessRunner
from muxflow_executor.run import Run

log = structlog.get_logger()

_MS_NS = 1_000_000


class Evictions:
    """Carries out orders. It needs neither the bus nor the lease: stopping is always allowed."""

    def __init__(
        self,
        store: AttemptStore,
        runner: ProcessRunner,
        *,
        gpus: Iterable[str],
        stop: Callable[[Attempt, EvictOrder], object],
    ) -> None:
        self._store = store
        self._runner = runner
        self._gpus = frozenset(gpus)
        self._stop = stop

    async def carry_out(self, order: EvictOrder) -> AsyncGenerator[EvictReply | EvictRefused, None]:
        """Stop what the order is about, then tell each step of it until nothing of it is left."""
        if order.gpu not in self._gpus:
            yield EvictRefused(reason=f"gpu: this node has no GPU {order.gpu!r}")
            return
        concerned = self._concerned(order)
        if concerned:
            log.info(
                "eviction ordered",
                gpu=order.gpu,
                attempts=[str(attempt) for attempt in concerned],
                reason=order.cause,
                hard=order.hard,
                workload=order.workload,
            )
        for attempt, run in concerned.items():
            if run is not None and run.ended is None:
                self._stop(attempt, order)
        told: asyncio.Queue[EvictReply] = asyncio.Queue()
        tasks = [asyncio.create_task(self._follow(attempt, run, order, told)) for attempt, run in concerned.items()]
        try:
            left = len(tasks)
            while left:
                reply = await told.get()
                left -= isinstance(reply, EvictDone)
                yield reply
        finally:
            for task in tasks:
                task.cancel()
        yield EvictEnd(attempts=len(concerned))

    def _concerned(self, order: EvictOrder) -> dict[Attempt, Run | None]:
        """Find the attempts that an order is about; None for one that is not here (any more).

        What was started after the decision is another attempt, though it may have the name of one that was meant.
        """
        runs = self._runner.runs
        if order.attempts is None:
            return {key: run for key, run in runs.items() if run.gpu == order.gpu and run.ended is None}
        found: dict[Attempt, Run | None] = {}
        for attempt in order.attempts:
            run = runs.get(attempt)
            later = run is None or run.directory is None or run.directory.intent.created_ns > order.decided_ns
            found[attempt] = None if later else run
        return found

    async def _follow(
        self, attempt: Attempt, run: Run | None, order: EvictOrder, told: asyncio.Queue[EvictReply]
    ) -> None:
        ended: Ended | None
        if run is None:
            ended = await asyncio.to_thread(self._store.end_of, attempt)
            if ended is not None and ended.ended_ns < order.decided_ns:
                ended = None  # of an earlier job with the same name
            gone_ns = ended.ended_ns if ended is not None else 0
        elif run.ended is not None:
            ended, gone_ns = run.ended, run.ended.ended_ns
        else:
            if run.descent is not None:
                async for passed in run.descent.follow():
                    await told.put(EvictStep(attempt=attempt, step=passed.step.value, time_ns=passed.time_ns))
            await run.over.wait()
            ended, gone_ns = run.ended, time.time_ns()
        if ended is None:
            await told.put(EvictDone(attempt=attempt))
        else:
            total_ms = max(0, gone_ns - order.decided_ns) / _MS_NS
            await told.put(EvictDone(attempt=attempt, exit=ended.status, total_ms=total_ms))
