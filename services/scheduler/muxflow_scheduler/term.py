"""One term of leadership: everything a scheduler does between taking the lead and losing it.

The order in every step is the same: decide in memory, commit the records, then publish what follows from them, then
ack. A crash between two of these is repaired by the message coming again or, for what no message brings back, by
`_take_over` of the next term.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, Final, assert_never

import msgspec
import structlog

from muxflow.bus import Bus, Consumer, Message, RawMessage, Retry
from muxflow.contracts import (
    EvictRequest,
    Gpu,
    JobCancel,
    JobRecord,
    JobState,
    JobSubmit,
    OnlineState,
    Placement,
    Purpose,
    RunEvent,
    RunEvicted,
    StopCause,
)
from muxflow.contracts.catalogue import (
    DURABLES,
    JOBS_CANCEL,
    JOBS_SUBMIT,
    REQUESTS_EVICT,
    RUNS_CHECKPOINTED,
    RUNS_EVICTED,
    RUNS_EXITED,
    RUNS_STARTED,
)
from muxflow_decisions import admission, lifecycle
from muxflow_decisions.device.sm_share import sm_share_pct
from muxflow_decisions.lease import LeaseTerms
from muxflow_decisions.lifecycle import Announce, Assign, Cancel, Decide, Note, Outcome, Wake, Withdraw
from muxflow_decisions.lifecycle.stimuli import NodeLost, Stimulus, Submit
from muxflow_decisions.matching import FleetGpu, FleetView, FreeGpu, WaitingJob, match, why_waiting
from muxflow_scheduler.announcements import Announcements
from muxflow_scheduler.desired import DesiredState, GpuKey
from muxflow_scheduler.devices import Devices
from muxflow_scheduler.fleet import Fleet, Node
from muxflow_scheduler.ledger import JobKey, Ledger, Superseded, key_of
from muxflow_scheduler.metrics import SchedulerMetrics
from muxflow_scheduler.occupancy import Occupancy
from muxflow_scheduler.settings import SchedulerSettings

log = structlog.get_logger()

_CLOSE_S: Final = 5.0
_GIVE_BACK_S: Final = 0.2
_LONGEST_TIMER_S: Final = 60.0
"""Looked at again at least this often: the wall clock may be set meanwhile."""


class Term:
    """State and handlers of one term. `failed` resolves with the error that ended it."""

    def __init__(self, bus: Bus, settings: SchedulerSettings, number: int, metrics: SchedulerMetrics) -> None:
        self.number = number
        self.settings = settings
        self._bus = bus
        self._metrics = metrics
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.ledger = Ledger(bus, self._fail)
        self.occupancy = Occupancy()
        self.waiting: dict[JobKey, WaitingJob] = {}
        terms = LeaseTerms(
            duration_ns=int(settings.lease.node_s * 1e9),
            grace_ns=int(settings.lease.node_grace_s * 1e9),
            margin_ns=int(settings.lease.node_margin_s * 1e9),
        )
        self.fleet = Fleet(bus, terms, on_change=self._request_placement, on_sessions_over=self._sessions_over)
        self.devices = Devices(bus, on_change=self._request_placement)
        self.desired = DesiredState(
            bus, number, records_on=self._records_on, session_of=self.fleet.session_of, on_failure=self._fail
        )
        self.announcements = Announcements(bus, metrics, retention_days=settings.scheduler.retention_days)
        self._consumers: list[Consumer] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._placement_requested = False
        self._held: dict[JobKey, int] = {}
        """Waiting jobs whose back-off has an end, and that end."""
        self._timer: asyncio.TimerHandle | None = None

    # ---------------------------------------------------------------- begin and end

    async def open(self) -> None:
        """Rebuild the state from the bus, repair what the last term left undone, and begin to work."""
        begun = time.monotonic()
        await self.ledger.load()
        for record in self.ledger:
            self._index(record)
        await self.desired.load()
        await self.fleet.load()
        await self.devices.load()
        for gpu in self.occupancy.gpus():
            self.fleet.node(gpu.node)  # one that has never told of itself may have to be declared lost as well
        for gpu in {*self.desired.known, *self.occupancy.gpus()}:
            self.desired.change(gpu, f"term {self.number} begins")
        for durable in DURABLES:
            if durable.name == "scheduler":
                self._consumers.append(await self._bus.consume(durable, self._handlers(), on_invalid=self._invalid))
        self._spawn(self.fleet.patrol())
        self._spawn(self.announcements.repair(list(self.ledger)))
        self._spawn(self.announcements.purge_for_ever(self.ledger))
        self._request_placement()
        log.info("leading", term=self.number, jobs=len(self.ledger), took_s=round(time.monotonic() - begun, 3))

    async def close(self) -> None:
        """Let go of everything; what was not finished is for the next term."""
        if self._timer is not None:
            self._timer.cancel()
        closing = asyncio.ensure_future(self.ledger.close())  # first of all, nothing is written any more
        await asyncio.gather(*(consumer.stop(patience_s=_CLOSE_S) for consumer in self._consumers))
        await closing
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.desired.close()
        await self.fleet.close()
        await self.devices.close()
        if not self.failed.done():
            self.failed.cancel()

    def _fail(self, error: BaseException) -> None:
        if not self.failed.done():
            self.failed.set_exception(error)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error)

    # ---------------------------------------------------------------- what comes in

    def _handlers(self) -> dict[str, Any]:
        handlers: dict[str, Callable[[Message[Any]], Awaitable[None]]] = {
            JOBS_SUBMIT.name: self._submitted,
            JOBS_CANCEL.name: self._cancelled,
            RUNS_STARTED.name: self._run_fact,
            RUNS_CHECKPOINTED.name: self._run_fact,
            RUNS_EVICTED.name: self._run_fact,
            RUNS_EXITED.name: self._run_fact,
            REQUESTS_EVICT.name: self._evict_requested,
        }
        return {name: _left_to_the_next_term(handler) for name, handler in handlers.items()}

    async def _submitted(self, message: Message[JobSubmit]) -> None:
        key = (message.names["tenant"], message.names["job"])
        spec = admission.check(
            msgspec.json.decode(message.data),
            message.event,
            tenant=key[0],
            job=key[1],
            tenants=self.settings.tenants,
            limits=self.settings.scheduler.limits,
        )
        if isinstance(spec, admission.Refusal):
            await self._reject(key, message.event.id, spec)
            return
        if damage := await self.ledger.damage(key):
            await self._reject(key, message.event.id, admission.Refusal(field=None, reason=damage))
            return
        record = self.ledger.get(key)
        if record is not None:
            outcome = self._step(record, Submit(spec=spec, submission_id=message.event.id))
        else:
            outcome = lifecycle.submit(
                spec,
                submission_id=message.event.id,
                submitted_ns=message.time_ns,
                now_ns=time.time_ns(),
                profiled=True,  # nobody measures jobs yet
            )
            self._request_placement()  # before the write begins, so that a free GPU makes it one write, not two
            self._put(outcome.record)
            self._metrics.submissions.labels("accepted").inc()
        await self._follow_up(key, outcome)

    async def _invalid(self, message: RawMessage, error: msgspec.ValidationError) -> bool:
        """Answer a submission or cancellation that is JSON but not valid; others are dead letters."""
        if message.subject.name not in (JOBS_SUBMIT.name, JOBS_CANCEL.name):
            return False
        key = (message.names["tenant"], message.names["job"])
        await self._reject(key, f"JOBS:{message.stream_sequence}", admission.invalid(error))
        return True

    async def _cancelled(self, message: Message[JobCancel]) -> None:
        key = (message.names["tenant"], message.names["job"])
        record = self.ledger.get(key)
        if record is None:
            reason = await self.ledger.damage(key) or f"there is no job {key[1]!r} in tenant {key[0]!r}"
            await self._reject(key, message.event.id, admission.Refusal(field=None, reason=reason))
            return
        await self._follow_up(key, self._step(record, Cancel(reason=message.event.reason)))

    async def _run_fact(self, message: Message[RunEvent]) -> None:
        fact: Any = message.event
        key = (fact.tenant, fact.job)
        if isinstance(fact, RunEvicted) and fact.cause is StopCause.EVICTION:
            self.devices.evicted(GpuKey(fact.node, fact.gpu), fact.time_ns)
        record = self.ledger.get(key)
        if record is None:
            log.info("fact about an unknown job", job=fact.job, tenant=fact.tenant, fact=message.subject.name)
            return
        await self._follow_up(key, self._step(record, fact))
        if (event := lifecycle.terminal_event(record)) is not None:
            await self.announcements.tell(event)  # it may be this fact that ended the job, before a crash

    async def _evict_requested(self, message: Message[EvictRequest]) -> None:
        request = message.event
        reason = f"evicted on request: {request.reason}" if request.reason else "evicted on request"
        for key in self.occupancy.on(GpuKey(request.node, request.gpu)):
            record = self.ledger.get(key)
            if record is None or (request.job is not None and key != (request.tenant, request.job)):
                continue
            await self._follow_up(key, self._step(record, Withdraw(reason=reason)))

    def _sessions_over(self, node: str) -> None:
        """End every attempt on this node that was placed in another session than its present one."""
        session = self.fleet.session_of(node)
        if not session:
            self._metrics.nodes_lost.inc()
        for _, key in list(self.occupancy.on_node(node)):
            record = self.ledger.get(key)
            if record is None or record.placement is None or record.placement.session == session:
                continue
            lost = NodeLost(node=node, session=record.placement.session, reason="its lease has ended")
            self._spawn(self._follow_up(key, self._step(record, lost)))

    # ---------------------------------------------------------------- deciding

    def _step(self, record: JobRecord, stimulus: Stimulus) -> Outcome:
        """Advance a job in memory, and begin to commit it."""
        outcome = lifecycle.advance(record, stimulus, now_ns=time.time_ns(), policy=self.settings.scheduler.retry)
        if outcome.record is not record:
            self._put(outcome.record)
        return outcome

    def _put(self, record: JobRecord) -> None:
        self.ledger.put(record)
        self._index(record)

    def _index(self, record: JobRecord) -> None:
        key = key_of(record)
        self.occupancy.update(record)
        if record.state is JobState.PENDING:
            self.waiting[key] = WaitingJob.of(record)
        else:
            self.waiting.pop(key, None)
        if record.state is JobState.PENDING and record.not_before_ns:
            self._held[key] = record.not_before_ns
        else:
            self._held.pop(key, None)

    async def _follow_up(self, key: JobKey, outcome: Outcome) -> None:
        """Carry out instructions, after the record they follow from is committed.

        Users are told last: a freed GPU does not wait for that.
        """
        await self.ledger.settled(key)
        events = []
        for instruction in outcome.instructions:
            match instruction:
                case Announce():
                    events.append(instruction.event)
                case Decide():
                    self.desired.change(GpuKey(instruction.node, instruction.gpu), instruction.cause)
                    self._request_placement()
                case Wake():
                    self._set_timer()
                case Note():
                    log.debug("nothing to do", tenant=key[0], job=key[1], reason=instruction.reason)
                case _:
                    assert_never(instruction)
        for event in events:
            await self.announcements.tell(event)

    def _request_placement(self) -> None:
        """Have `_place` run soon, once for all who asked meanwhile."""
        if not self._placement_requested:
            self._placement_requested = True
            asyncio.get_running_loop().call_soon(self._place)

    def _place(self) -> None:
        """Match waiting jobs to free GPUs, and assign them."""
        self._placement_requested = False
        self._set_timer()
        if not self.waiting or self.failed.done():
            return
        free = [
            FreeGpu.of(node.state, gpu, session=node.session, online=self.devices.online(GpuKey(node.name, gpu.uuid)))
            for node, gpu in self.fleet.open_gpus()
            if node.state is not None
            and self.occupancy.free(GpuKey(node.name, gpu.uuid))
            and self.devices.closed(node, gpu.uuid) is None
        ]
        if not free:
            return
        with self._metrics.match_seconds.time():
            matching = match(list(self.waiting.values()), free, now_ns=time.time_ns())
        for key, gpu in matching.assignments:
            self._assign(key, gpu)

    def _set_timer(self) -> None:
        """Have matching run again when the next back-off ends."""
        now_ns = time.time_ns()
        ends_ns = min((at_ns for at_ns in self._held.values() if at_ns > now_ns), default=None)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if ends_ns is not None and not self.failed.done():
            delay_s = min((ends_ns - now_ns) / 1e9, _LONGEST_TIMER_S)
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._request_placement)

    def _assign(self, key: JobKey, gpu: FreeGpu) -> None:
        record = self.ledger.get(key)
        if record is None:
            return
        placement = Placement(
            node=gpu.node,
            gpu=gpu.uuid,
            session=gpu.session,
            purpose=Purpose.RUN,
            sm_share_pct=self.sm_share(GpuKey(gpu.node, gpu.uuid)),
        )
        outcome = self._step(record, Assign(placement=placement))
        self._metrics.placements.inc()
        self._spawn(self._follow_up(key, outcome))

    def sm_share(self, key: GpuKey) -> int | None:
        """SM share of a job that is placed there now; None where nobody watches the GPU, and MPS need not run."""
        node = self.fleet.node(key.node)
        if node.state is None or not node.state.watched:
            return None
        online = self.devices.online(key)
        return sm_share_pct(
            forecast_peak_pct=_forecast_pct(online),
            sm_count=None,  # inventories do not tell
            policy=self.settings.scheduler.sm_share,
        )

    def _records_on(self, gpu: GpuKey) -> Iterable[JobRecord]:
        """Committed records of the jobs on a GPU."""
        for key in self.occupancy.on(gpu):
            if (record := self.ledger.committed(key)) is not None:
                yield record

    # ---------------------------------------------------------------- why

    def why_waiting(self, record: JobRecord) -> str:
        """Say in words, with numbers, why a pending job does not run."""
        return why_waiting(
            WaitingJob.of(record),
            self.view(),
            position=self.queue_position(record),
            now_ns=time.time_ns(),
        )

    def why_closed(self, node: Node, gpu: Gpu) -> str | None:
        """Say why no new offline work is placed on a GPU, whether or not it is free; None if it may be."""
        if not self.fleet.alive(node):
            return "its node is not alive"
        if node.state is not None and node.state.draining:
            return "its node is draining"
        found = self.devices.closed(node, gpu.uuid)
        return str(found) if found else None

    def view(self) -> FleetView:
        """Every GPU as it is now."""
        return FleetView(
            tuple(
                FleetGpu.of(
                    node.state,
                    gpu,
                    alive=self.fleet.alive(node),
                    busy=not self.occupancy.free(GpuKey(node.name, gpu.uuid)),
                    closed=self.devices.closed(node, gpu.uuid),
                )
                for node in self.fleet.nodes.values()
                if node.state is not None
                for gpu in node.gpus
            )
        )

    def queue_position(self, record: JobRecord) -> int:
        """How many waiting jobs go before this one."""
        mine = WaitingJob.of(record).order
        return sum(job.order < mine for job in self.waiting.values())

    # ---------------------------------------------------------------- what goes out

    async def _reject(self, key: JobKey, submission_id: str, refusal: admission.Refusal) -> None:
        self._metrics.submissions.labels("rejected").inc()
        log.info("rejected", tenant=key[0], job=key[1], field=refusal.field, reason=refusal.reason)
        event = lifecycle.rejected_event(
            *key, submission_id, field=refusal.field, reason=refusal.reason, now_ns=time.time_ns()
        )
        await self.announcements.tell(event)


def _left_to_the_next_term(
    handler: Callable[[Message[Any]], Awaitable[None]],
) -> Callable[[Message[Any]], Awaitable[None]]:
    """Give a message back when the term ends while it is handled."""

    async def handle(message: Message[Any]) -> None:
        try:
            await handler(message)
        except Superseded as error:
            raise Retry(str(error), delay_s=_GIVE_BACK_S) from error

    return handle


def _forecast_pct(online: OnlineState | None) -> float | None:
    """Tell how much of a GPU its online side will need without saying so in time."""
    if online is None:
        return None
    return online.activity_peak_pct if online.uncovered_peak_pct is None else online.uncovered_peak_pct
