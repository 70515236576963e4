"""Who goes where: problems put together, solved in the solver's process, and carried out if they still hold.

One solve at a time. What changes meanwhile asks for another one, so that any number of changes cost one solve more.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Final

import msgspec
import structlog
from msgspec.structs import replace

from muxflow.contracts import JobRecord, JobState, Placement, Purpose, Solve
from muxflow_decisions.lifecycle import Assign, Plan, ProfileGivenUp, Stimulus, Turn, Withdraw
from muxflow_decisions.matching import (
    CertificateError,
    Matching,
    Measured,
    Move,
    Need,
    OpenGpu,
    PlacedJob,
    Problem,
    Spot,
    WaitingJob,
    fits,
    measured_of,
    spot_of,
)
from muxflow_scheduler.desired import GpuKey
from muxflow_scheduler.ledger import JobKey, Ledger, key_of
from muxflow_scheduler.measuring import Measuring
from muxflow_scheduler.metrics import SchedulerMetrics
from muxflow_scheduler.occupancy import Occupancy
from muxflow_scheduler.offers import Offers
from muxflow_scheduler.queue import Queue
from muxflow_scheduler.settings import SchedulerSection
from muxflow_scheduler.solver import SolverError
from muxflow_scheduler.speeds import Speeds

log = structlog.get_logger()

_LONGEST_TIMER_S: Final = 60.0
"""Looked at again at least this often: the wall clock may be set meanwhile."""
_SPEEDS_PATIENCE_S: Final = 0.02
_INTERVAL_PATIENCE_S: Final = 5.0
"""Before everything is matched; arrivals are placed meanwhile."""
_AGAIN_S: Final = 1.0
"""Wait after a solve that failed."""
_MISSED_S: Final = 0.02
"""Wait after one of which something did not hold any more: never a loop that is all work."""
_SOLVES_KEPT: Final = 20
_INTERVAL: Final = "interval"


class Placing:
    """Places waiting jobs, and moves running ones. `step` advances a job and sees to what follows from it."""

    def __init__(
        self,
        *,
        settings: SchedulerSection,
        solve: Callable[[Problem], Awaitable[Matching]],
        ledger: Ledger,
        queue: Queue,
        occupancy: Occupancy,
        offers: Offers,
        measuring: Measuring,
        speeds: Speeds,
        metrics: SchedulerMetrics,
        step: Callable[[JobRecord, Stimulus], JobRecord],
    ) -> None:
        self._settings = settings
        self._solve = solve
        self._ledger = ledger
        self._queue = queue
        self._occupancy = occupancy
        self._offers = offers
        self._measuring = measuring
        self._speeds = speeds
        self._metrics = metrics
        self._step = step
        self._asked: dict[str, None] = {}
        self._wake = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._ends_ns: int | None = None
        """When a wait for a measurement ends."""
        self._looked_ns = 0
        """When the last problem was put together: back-offs that have ended since then are still to be seen."""
        self.solves: deque[Solve] = deque(maxlen=_SOLVES_KEPT)

    def request(self, trigger: str) -> None:
        """Have waiting jobs matched soon, once for all who ask meanwhile."""
        self._asked[trigger] = None
        self._wake.set()

    async def run(self) -> None:
        """Place jobs, for ever."""
        interval = asyncio.get_running_loop().create_task(self._keep_interval())
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                asked, self._asked = tuple(self._asked), {}
                await self._round(asked, everything=False)
                if _INTERVAL in asked:
                    await self._round((_INTERVAL,), everything=True)
                self.set_timer()
        finally:
            interval.cancel()
            if self._timer is not None:
                self._timer.cancel()

    async def _keep_interval(self) -> None:
        while self._settings.interval_s:
            await asyncio.sleep(self._settings.interval_s)
            if (problem := self._problem(everything=True)) is not None:  # who moves by a guess moves back
                await self._speeds.learn(_pairs(problem), patience_s=_INTERVAL_PATIENCE_S)
            self.request(_INTERVAL)

    def set_timer(self) -> None:
        """Have matching run again when the next wait ends: a back-off, one for a measurement, a reservation."""
        now_ns = time.time_ns()
        ends = (
            self._queue.next_release_ns(min(self._looked_ns, now_ns)),
            self._ends_ns,
            self._offers.reservations.next_end_ns(),
        )
        ends_ns = min((each for each in ends if each is not None), default=None)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if ends_ns is not None:
            delay_s = min(max((ends_ns - now_ns) / 1e9, 0.0), _LONGEST_TIMER_S)
            self._timer = asyncio.get_running_loop().call_later(delay_s, self.request, "time")

    def goes_on(self, record: JobRecord) -> bool:
        """Whether a job that has just been measured stays where it is, as far as others are concerned.

        It would only come back where nobody before it in the queue wants that GPU. For one that waits to be measured
        there it makes room if there is another GPU for it.
        """
        if record.placement is None:
            return False
        here = self._offers.at(GpuKey(record.placement.node, record.placement.gpu))
        mine = self._queue.seen(record)
        others = [job for job in self._queue.in_order() if here is not None and fits(job.need, here)]
        if any(job.order < mine.order for job in others):
            return False
        elsewhere = any(fits(mine.need, gpu.offer) for gpu in self._offers.open_gpus(occupied=False))
        return not (elsewhere and any(not job.profiled for job in others))

    # ---------------------------------------------------------------- one solve

    async def _round(self, asked: tuple[str, ...], *, everything: bool) -> None:
        problem = self._problem(everything=everything)
        if problem is None:
            return
        pairs = tuple(_pairs(problem))
        await self._speeds.learn(pairs, patience_s=_SPEEDS_PATIENCE_S)
        problem = replace(problem, speeds=self._speeds.table(pairs))
        try:
            with self._metrics.match_seconds.time():
                matching = await self._solve(problem)
        except (CertificateError, SolverError, ValueError) as error:
            self._metrics.solves_failed.inc()
            log.error("a solve has failed", trigger=",".join(asked), reason=str(error))  # noqa: TRY400 - says it all
            await asyncio.sleep(_AGAIN_S)
            self.request("again")
            return
        self._record(matching, asked)
        self._carry_out(matching)

    def _problem(self, *, everything: bool) -> Problem | None:
        """Put together waiting jobs and free GPUs, or all there is; None if there is nothing to decide."""
        self._looked_ns = now_ns = time.time_ns()
        self._offers.reservations.expire(now_ns)
        gpus = self._offers.open_gpus(occupied=everything)
        if not gpus:  # whoever comes to be free asks for another round
            self._ends_ns = None
            return None
        waiting = tuple(self._ready(now_ns))
        if everything:  # nobody moves so that somebody can be measured
            waiting = tuple(job for job in waiting if not job.need.alone)
        placed = tuple(self._placed(gpus, now_ns)) if everything else ()
        if not waiting and not any(job.movable for job in placed):
            return None
        return Problem(waiting=waiting, gpus=tuple(gpus), placed=placed, policy=self._settings.matching, now_ns=now_ns)

    def _ready(self, now_ns: int) -> Iterator[WaitingJob]:
        """Jobs that take part; those that are to be measured want a GPU for that."""
        self._ends_ns = None
        queue = [(job, record.spec) for job in self._queue.in_order() if (record := self._ledger.get(job.key))]
        for (job, _), how in zip(queue, self._measuring.plans(queue, now_ns=now_ns), strict=True):
            if self._is_expected(job.key):
                continue
            if how is not None and how.turn is not Turn.ANYWHERE:
                self._ends_ns = min(self._ends_ns or how.until_ns, how.until_ns)
            if how is None or how.turn is Turn.ANYWHERE:
                yield job
            elif how.turn is Turn.ALONE:
                yield replace(job, need=replace(job.need, alone=True))

    def _is_expected(self, job: JobKey) -> bool:
        """Whether the GPU that is kept for a job is about to be free. It would only be put where it just was, and the
        move be for nothing.
        """
        gpu = self._offers.reservations.gpu_of(job)
        there = self._occupancy.on(gpu) if gpu is not None else frozenset()
        records = [self._ledger.get(key) for key in there]
        return bool(records) and all(record is not None and record.state is JobState.STOPPING for record in records)

    def _placed(self, gpus: Iterable[OpenGpu], now_ns: int) -> Iterator[PlacedJob]:
        settled_ns = now_ns - int(self._settings.settle_s * 1e9)
        for gpu in gpus:
            for key in self._occupancy.on(GpuKey(gpu.node, gpu.uuid)):
                record = self._ledger.get(key)
                if record is None:
                    continue
                since_ns = max(record.started_ns, record.changed_ns)
                yield PlacedJob(
                    key=key,
                    need=self._queue.seen(record).need,
                    gpu=(gpu.node, gpu.uuid),
                    movable=record.state is JobState.RUNNING and since_ns <= settled_ns,
                    saves=record.spec.checkpoint is not None,
                )

    def _record(self, matching: Matching, asked: tuple[str, ...]) -> None:
        summary = matching.summary
        solve = Solve(
            time_ns=time.time_ns(),
            trigger=", ".join(asked),
            jobs=summary.jobs,
            gpus=summary.gpus,
            job_classes=summary.job_classes,
            gpu_classes=summary.gpu_classes,
            placed=len(matching.assignments),
            moved=len(matching.moves),
            throughput=summary.throughput_permille / 1000,
            cost=summary.cost,
            bound=summary.bound,
            solve_ms=summary.solve_ms,
        )
        self.solves.append(solve)
        told = msgspec.structs.asdict(solve)
        del told["time_ns"]
        log.info("solved", **told)

    # ---------------------------------------------------------------- carrying it out

    def _carry_out(self, matching: Matching) -> None:
        """Do what still holds; what does not is for the next solve."""
        missed = [not self._assign(key, gpu) for key, gpu in matching.assignments]
        moving = together(move for move in matching.moves if self._may_move(move))
        for move in moving:
            self._move(move)
        left = {GpuKey(*move.source) for move in moving}
        for key, gpu in matching.promised:
            if GpuKey(gpu.node, gpu.uuid) in left:
                self._reserve(GpuKey(gpu.node, gpu.uuid), key)
        if any(missed):
            asyncio.get_running_loop().call_later(_MISSED_S, self.request, "again")

    def _assign(self, key: JobKey, gpu: OpenGpu) -> bool:
        """Place a waiting job; False if it, or the GPU, is not as it was when the problem was put together."""
        record, place = self._ledger.get(key), GpuKey(gpu.node, gpu.uuid)
        if record is None or record.state is not JobState.PENDING or not self._may_take(gpu, key):
            return False
        if record.profiled:
            return self._place(record, gpu, Purpose.RUN)
        if self._offers.quiet(place) and not self._measuring.under_way(record.spec):
            return self._place(record, gpu, Purpose.PROFILE)
        how = self.how_it_waits(record)
        if how is None or how.turn is not Turn.ANYWHERE:
            return False
        return self._place(self._step(record, ProfileGivenUp(reason=how.why)), gpu, Purpose.RUN)

    def _may_take(self, gpu: OpenGpu, key: JobKey, *, after: JobKey | None = None) -> bool:
        """Whether a GPU is still there for a job: open, free but for one that leaves it, and kept for nobody else."""
        place = GpuKey(gpu.node, gpu.uuid)
        return (
            self._offers.takes(gpu)
            and self._occupancy.on(place) <= {after}
            and self._offers.reservations.holder(place) in (None, key)
        )

    def how_it_waits(self, record: JobRecord) -> Plan | None:
        """Whether a pending job waits to be measured; None if it need not be."""
        queue = ((self._queue.seen(record), record.spec),)
        return next(self._measuring.plans(queue, now_ns=time.time_ns()))

    def _place(self, record: JobRecord, gpu: OpenGpu, purpose: Purpose) -> bool:
        place = GpuKey(gpu.node, gpu.uuid)
        measured = purpose is Purpose.PROFILE
        share = self._offers.measuring_share(place) if measured else self._offers.sm_share(place)
        placement = Placement(node=gpu.node, gpu=gpu.uuid, session=gpu.session, purpose=purpose, sm_share_pct=share)
        after = self._step(record, Assign(placement=placement))
        if after is record:
            return False
        self._offers.reservations.release(key_of(record))
        self._metrics.placements.inc()
        return True

    def _may_move(self, move: Move) -> bool:
        record = self._ledger.get(move.key)
        return (
            record is not None
            and record.state is JobState.RUNNING
            and record.placement is not None
            and (record.placement.node, record.placement.gpu) == move.source
            and self._may_take(move.target, move.key, after=move.after)
        )

    def _move(self, move: Move) -> None:
        record = self._ledger.get(move.key)
        if record is None:
            return
        self._reserve(GpuKey(move.target.node, move.target.uuid), move.key)
        speeds = f"predicted {move.target_permille / 1000:.2f} there, {move.source_permille / 1000:.2f} here"
        reason = f"moves to GPU {move.target.uuid} of {move.target.node}: {speeds}"
        self._step(record, Withdraw(reason=reason, attempt=record.attempt))
        self._metrics.moves.inc()

    def _reserve(self, gpu: GpuKey, job: JobKey) -> None:
        until_ns = time.time_ns() + int(self._settings.reserved_s * 1e9)
        self._offers.reservations.make(gpu, job, until_ns=until_ns)


def together(moves: Iterable[Move]) -> list[Move]:
    """Leave out moves to GPUs that nobody leaves after all, and those that would follow them."""
    left = list(moves)
    while True:
        leaving = {move.key for move in left}
        possible = [move for move in left if move.after is None or move.after in leaving]
        if len(possible) == len(left):
            return left
        left = possible


def _pairs(problem: Problem) -> Iterator[tuple[Measured, Spot]]:
    """Pairs that a prediction can tell something about: jobs beside an online workload."""
    needs: list[Need] = [job.need for job in problem.waiting] + [job.need for job in problem.placed]
    spots = dict.fromkeys(spot_of(gpu.offer) for gpu in problem.gpus if gpu.offer.workload is not None)
    for measured in dict.fromkeys(measured_of(need) for need in needs if not need.alone):
        for spot in spots:
            yield measured, spot
