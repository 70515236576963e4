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
from msgspec.structs import replace

from muxflow.bus import Bus, Consumer, Message, RawMessage, Retry
from muxflow.contracts import (
    EvictRequest,
    JobCancel,
    JobRecord,
    JobState,
    JobSubmit,
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
from muxflow_decisions.lease import LeaseTerms
from muxflow_decisions.lifecycle import Announce, Cancel, Decide, Note, Outcome, Wake, Withdraw
from muxflow_decisions.lifecycle.stimuli import NodeLost, Stimulus, Submit
from muxflow_decisions.matching import Matching, Problem
from muxflow_scheduler.announcements import Announcements
from muxflow_scheduler.desired import DesiredState, GpuKey
from muxflow_scheduler.devices import Devices
from muxflow_scheduler.fleet import Fleet
from muxflow_scheduler.ledger import JobKey, Ledger, Superseded, key_of
from muxflow_scheduler.measuring import Measuring
from muxflow_scheduler.metrics import SchedulerMetrics
from muxflow_scheduler.occupancy import Occupancy
from muxflow_scheduler.offers import Offers
from muxflow_scheduler.placing import Placing
from muxflow_scheduler.profiles import Profiles
from muxflow_scheduler.queue import Queue
from muxflow_scheduler.settings import SchedulerSettings
from muxflow_scheduler.speeds import Speeds

log = structlog.get_logger()

_CLOSE_S: Final = 5.0
_GIVE_BACK_S: Final = 0.2


class Term:
    """State and handlers of one term. `failed` resolves with the error that ended it."""

    def __init__(
        self,
        bus: Bus,
        settings: SchedulerSettings,
        number: int,
        metrics: SchedulerMetrics,
        *,
        solve: Callable[[Problem], Awaitable[Matching]],
    ) -> None:
        self.number = number
        self.settings = settings
        self._bus = bus
        self._metrics = metrics
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.ledger = Ledger(bus, self._fail)
        self.occupancy = Occupancy()
        terms = LeaseTerms(
            duration_ns=int(settings.lease.node_s * 1e9),
            grace_ns=int(settings.lease.node_grace_s * 1e9),
            margin_ns=int(settings.lease.node_margin_s * 1e9),
        )
        self.fleet = Fleet(bus, terms, on_change=self._fleet_changed, on_sessions_over=self._sessions_over)
        self.devices = Devices(bus, on_change=self._device_changed, on_online=self._online_changed)
        self.profiles = Profiles(bus, on_measured=self._measured)
        section = settings.scheduler
        self.speeds = Speeds(bus, wanted=section.prediction, refresh_s=section.speeds_refresh_s)
        self.offers = Offers(self.fleet, self.devices, self.occupancy, self.profiles, sm_share=section.sm_share)
        self.measuring = Measuring(
            self.profiles, self.offers, wanted=section.profiling, patience_s=section.profile_patience_s
        )
        self.queue = Queue(self.measuring.predicted_as)
        self.placing = Placing(
            settings=section,
            solve=solve,
            ledger=self.ledger,
            queue=self.queue,
            occupancy=self.occupancy,
            offers=self.offers,
            measuring=self.measuring,
            speeds=self.speeds,
            metrics=metrics,
            step=self._advance,
        )
        self.desired = DesiredState(
            bus, number, records_on=self._records_on, session_of=self.fleet.session_of, on_failure=self._fail
        )
        self.announcements = Announcements(bus, metrics, retention_days=section.retention_days)
        self._consumers: list[Consumer] = []
        self._tasks: set[asyncio.Task[None]] = set()

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
        await self.profiles.load()
        await self.speeds.load()
        for record in self.ledger:
            self.queue.update(record)  # what is predicted for it is known only now
        for gpu in self.occupancy.gpus():
            self.fleet.node(gpu.node)  # one that has never told of itself may have to be declared lost as well
        for gpu in {*self.desired.known, *self.occupancy.gpus()}:
            self.desired.change(gpu, f"term {self.number} begins")
        for key in self.measuring.unmeasured_keys():
            self._measured(key)
        for gpu in self.occupancy.gpus():
            self._online_changed(gpu)
        for durable in DURABLES:
            if durable.name == "scheduler":
                self._consumers.append(await self._bus.consume(durable, self._handlers(), on_invalid=self._invalid))
        self._spawn(self.fleet.patrol())
        self._spawn(self.announcements.repair(list(self.ledger)))
        self._spawn(self.announcements.purge_for_ever(self.ledger))
        self._spawn(self.placing.run())
        self.placing.request("start")
        log.info("leading", term=self.number, jobs=len(self.ledger), took_s=round(time.monotonic() - begun, 3))

    async def close(self) -> None:
        """Let go of everything; what was not finished is for the next term."""
        closing = asyncio.ensure_future(self.ledger.close())  # first of all, nothing is written any more
        await asyncio.gather(*(consumer.stop(patience_s=_CLOSE_S) for consumer in self._consumers))
        await closing
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.desired.close()
        await self.fleet.close()
        await self.devices.close()
        await self.profiles.close()
        await self.speeds.close()
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
                profiled=self.measuring.needless(spec),
            )
            self._put(outcome.record)
            self.placing.request("arrival")
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

    def _fleet_changed(self) -> None:
        self.offers.changed()
        self.placing.request("node")

    def _device_changed(self) -> None:
        self.placing.request("device")

    def _online_changed(self, gpu: GpuKey) -> None:
        """A job cannot be measured alone where an online workload has come; where one has left, another can be."""
        self.offers.changed()
        self.placing.request("device")
        online = self.devices.online(gpu)
        if online is None or online.workload is None:
            return
        for key in self.occupancy.on(gpu):
            record = self.ledger.get(key)
            if record is not None and record.state is JobState.PROFILING:
                reason = f"it was to be measured alone, and {online.workload} is served there now"
                self._advance(record, Withdraw(reason=reason, attempt=record.attempt))

    def _measured(self, key: str) -> None:
        """Tell jobs that their profile is known, or why there will be none."""
        for job in self.measuring.jobs_of(key):
            record = self.ledger.get(job)
            if record is not None and (known := self.measuring.known(record.spec)) is not None:
                self._advance(record, replace(known, goes_on=self.placing.goes_on(record)))
        for job in self.measuring.waiting(key):
            if (record := self.ledger.get(job)) is not None:
                self.queue.update(record)
        self.placing.request("profile")

    # ---------------------------------------------------------------- deciding

    def _step(self, record: JobRecord, stimulus: Stimulus) -> Outcome:
        """Advance a job in memory, and begin to commit it."""
        outcome = lifecycle.advance(record, stimulus, now_ns=time.time_ns(), policy=self.settings.scheduler.retry)
        if outcome.record is not record:
            self._put(outcome.record)
        return outcome

    def _advance(self, record: JobRecord, stimulus: Stimulus) -> JobRecord:
        """Advance a job, and have what follows from that carried out."""
        outcome = self._step(record, stimulus)
        self._spawn(self._follow_up(key_of(record), outcome))
        return outcome.record

    def _put(self, record: JobRecord) -> None:
        self.ledger.put(record)
        self._index(record)

    def _index(self, record: JobRecord) -> None:
        self.occupancy.update(record)
        self.measuring.update(record)
        self.queue.update(record)
        if record.state.terminal:
            self.offers.reservations.release(key_of(record))

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
                    gpu = GpuKey(instruction.node, instruction.gpu)
                    self.desired.change(gpu, instruction.cause)
                    if self.occupancy.free(gpu):
                        self.placing.request("end")
                case Wake():
                    self.placing.set_timer()
                case Note():
                    log.debug("nothing to do", tenant=key[0], job=key[1], reason=instruction.reason)
                case _:
                    assert_never(instruction)
        for event in events:
            await self.announcements.tell(event)

    def _records_on(self, gpu: GpuKey) -> Iterable[JobRecord]:
        """Committed records of the jobs on a GPU."""
        for key in self.occupancy.on(gpu):
            if (record := self.ledger.committed(key)) is not None:
                yield record

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
