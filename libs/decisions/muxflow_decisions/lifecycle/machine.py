"""The machine itself: one function per kind of stimulus, dispatched by `advance`.

What it holds on to:

- A number of an attempt is used once, and a new one is given only while no attempt is placed. An attempt leaves its
  place only by `RunExited` from the node it was placed on, or by `NodeLost` of the lease session it was placed in.
- Facts about any other attempt, and about jobs that have ended, change nothing. So duplicates and reordering do not
  either: an exit may come before its start, or while the record still says *assigned*.
- A program that ended by itself with code 0 has finished, whatever else was wanted at that moment.
- A job that MuxFlow stopped for a breach has failed, whatever retries it has left: the same program would do the same
  again, beside an online service that was promised that it does not.
- A lost node is the platform's fault and is counted nowhere. An exit that nobody saw on a node that lives
  (`ExitStatus.lost`) counts as a loss: the job itself may have brought its shim down, and would do so for ever.
"""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from muxflow.contracts import (
    ExitStatus,
    JobRecord,
    JobSpec,
    JobState,
    Placement,
    Purpose,
    RunCheckpointed,
    RunEvent,
    RunEvicted,
    RunExited,
    RunStarted,
    StopCause,
    Transition,
)
from muxflow_decisions.lifecycle import stimuli
from muxflow_decisions.lifecycle.instructions import Announce, Decide, Instruction, Note, Outcome, Wake
from muxflow_decisions.lifecycle.outcomes import accepted_event, rejected_event, terminal_event
from muxflow_decisions.lifecycle.retry import RetryPolicy, delay_ns, holds_back
from muxflow_decisions.lifecycle.stimuli import (
    Assign,
    Cancel,
    NodeLost,
    ProfileDone,
    ProfileGivenUp,
    Stimulus,
    Submit,
    Withdraw,
)
from muxflow_decisions.lifecycle.story import DETAIL_LENGTH, shortened, told


def submit(spec: JobSpec, *, submission_id: str, submitted_ns: int, now_ns: int, profiled: bool = False) -> Outcome:
    """Make the record of an admitted job. `profiled` tells that its profile is known or that nobody measures jobs."""
    reason = "waiting for a GPU"
    record = JobRecord(
        tenant=spec.tenant,
        job=spec.name,
        spec=spec,
        submission_id=submission_id,
        submitted_ns=submitted_ns,
        reason=reason,
        profiled=profiled,
        changed_ns=now_ns,
        story=(Transition(time_ns=now_ns, state=JobState.PENDING, stimulus="submit", detail=reason),),
    )
    return Outcome(record, (Announce(event=accepted_event(record)),))


def advance(record: JobRecord, stimulus: Stimulus, *, now_ns: int, policy: RetryPolicy) -> Outcome:  # noqa: PLR0911 - one per stimulus
    """Take one step. `now_ns` is the time in UTC; a clock that is set back only affects back-off."""
    if isinstance(stimulus, Submit):
        return _resubmitted(record, stimulus, now_ns)
    if record.state.terminal:
        return _ignored(record, f"the job has ended: {record.state.value}")
    step = _Step(record, stimulus, now_ns, policy)
    match stimulus:
        case Cancel():
            return _cancel(step, stimulus)
        case Assign():
            return _assign(step, stimulus)
        case Withdraw():
            return _withdraw(step, stimulus)
        case ProfileDone():
            return _profiled(step, "its profile is known", goes_on=stimulus.goes_on)
        case ProfileGivenUp():
            return _profiled(step, f"it runs without a profile: {stimulus.reason}", goes_on=stimulus.goes_on)
        case NodeLost():
            return _node_lost(step, stimulus)
        case RunStarted() | RunCheckpointed() | RunEvicted() | RunExited():
            return _fact(step, stimulus)


class _Step:
    """One call of `advance`: the record before, and how records after it are made."""

    def __init__(self, record: JobRecord, stimulus: Stimulus, now_ns: int, policy: RetryPolicy) -> None:
        self.record = record
        self.stimulus = stimulus
        self.now_ns = now_ns
        self.policy = policy

    def on(self, **changes: Any) -> _Step:
        """Go on from a changed record."""
        return _Step(replace(self.record, **changes), self.stimulus, self.now_ns, self.policy)

    def to(self, state: JobState, reason: str, **changes: Any) -> JobRecord:
        """Make the record after a transition."""
        reason = shortened(reason)
        detail = shortened(reason, DETAIL_LENGTH)
        line = Transition(time_ns=self.now_ns, state=state, stimulus=stimuli.name(self.stimulus), detail=detail)
        return replace(
            self.record,
            state=state,
            reason=reason,
            changed_ns=self.now_ns,
            story=told(self.record, line),
            **changes,
        )


def _ignored(record: JobRecord, reason: str) -> Outcome:
    return Outcome(record, (Note(reason=reason),))


def _resubmitted(record: JobRecord, stimulus: Submit, now_ns: int) -> Outcome:
    if stimulus.spec == record.spec:
        return Outcome(record, (Announce(event=accepted_event(record, submission_id=stimulus.submission_id)),))
    refusal = rejected_event(
        record.tenant,
        record.job,
        stimulus.submission_id,
        field="spec",
        reason=f"there is another job of this name ({record.state.value}); give this one a new name",
        now_ns=now_ns,
    )
    return Outcome(record, (Announce(event=refusal),))


def _cancel(step: _Step, stimulus: Cancel) -> Outcome:
    record = step.record
    if record.cancel_requested:
        return _ignored(record, "it is being cancelled already")
    reason = "cancelled on request" + (f": {stimulus.reason}" if stimulus.reason else "")
    if record.placement is None:
        return _ended(step.to(JobState.CANCELLED, reason, cancel_requested=True, not_before_ns=0))
    after = step.to(JobState.STOPPING, reason, cancel_requested=True)
    if record.state is JobState.STOPPING:
        return Outcome(after)
    return Outcome(after, (_decide(record.placement, after, reason),))


def _assign(step: _Step, stimulus: Assign) -> Outcome:
    record, placement = step.record, stimulus.placement
    if record.state is not JobState.PENDING:
        return _ignored(record, f"only a pending job can be placed, and it is {record.state.value}")
    if holds_back(since_ns=record.changed_ns, until_ns=record.not_before_ns, now_ns=step.now_ns):
        return _ignored(record, "its back-off has not ended")
    if placement.purpose is Purpose.PROFILE and record.profiled:
        return _ignored(record, "it was profiled before")
    state = JobState.PROFILING if placement.purpose is Purpose.PROFILE else JobState.ASSIGNED
    reason = f"placed on GPU {placement.gpu} of {placement.node}"
    after = step.to(
        state,
        reason,
        attempt=record.attempt + 1,
        placement=placement,
        last_placement=placement,
        started_ns=0,
        not_before_ns=0,
    )
    return Outcome(after, (_decide(placement, after, "starts there"),))


def _withdraw(step: _Step, stimulus: Withdraw) -> Outcome:
    record = step.record
    if record.placement is None or record.state is JobState.STOPPING:
        return _ignored(record, f"nothing to withdraw: it is {record.state.value}")
    if stimulus.attempt not in (None, record.attempt):
        return _ignored(record, f"attempt {stimulus.attempt} is meant, and attempt {record.attempt} is placed")
    return _stop(step, record.placement, f"withdrawn: {stimulus.reason}")


def _profiled(step: _Step, reason: str, *, goes_on: bool) -> Outcome:
    record = step.record
    if record.profiled:
        return _ignored(record, "it was profiled before")
    if record.state is JobState.PROFILING and record.placement is not None:
        if goes_on:
            return _goes_on(step, record.placement, reason)
        return _stop(step, record.placement, reason, profiled=True)
    if record.state is JobState.PENDING:
        return Outcome(step.to(record.state, reason, profiled=True))
    return Outcome(replace(record, profiled=True))


def _goes_on(step: _Step, placement: Placement, reason: str) -> Outcome:
    """The attempt stays what it is and where it is; it is only wanted for another purpose from now on."""
    state = JobState.RUNNING if step.record.started_ns else JobState.ASSIGNED
    stays = replace(placement, purpose=Purpose.RUN)
    after = step.to(state, reason, profiled=True, placement=stays, last_placement=stays)
    return Outcome(after, (_decide(stays, after, reason),))


def _node_lost(step: _Step, stimulus: NodeLost) -> Outcome:
    record, placement = step.record, step.record.placement
    if placement is None or (placement.node, placement.session) != (stimulus.node, stimulus.session):
        return _ignored(record, f"no attempt of it is placed in session {stimulus.session!r} of {stimulus.node}")
    if record.cancel_requested:
        return _left(step.to(JobState.CANCELLED, record.reason, placement=None), placement)
    why = f": {stimulus.reason}" if stimulus.reason else ""
    after = step.to(JobState.PENDING, f"node {stimulus.node} was lost{why}", placement=None)
    return _left(after, placement)


def _fact(step: _Step, fact: RunStarted | RunCheckpointed | RunEvicted | RunExited) -> Outcome:
    record, placement = step.record, step.record.placement
    stray = _stray(record, fact)
    if placement is None or stray is not None:
        return _ignored(record, stray or "no attempt of it is placed")
    match fact:
        case RunStarted():
            return _started(step, fact, placement)
        case RunCheckpointed():
            return _checkpointed(step, fact)
        case RunEvicted():
            return _evicted(step, fact, placement)
        case RunExited():
            return _exited(step, fact, placement)


def _stray(record: JobRecord, fact: RunEvent) -> str | None:
    """Say why a fact is not about the attempt that is placed now; None if it is."""
    if (fact.tenant, fact.job) != (record.tenant, record.job):
        return f"a fact about {fact.tenant}/{fact.job}"
    if record.placement is None:
        return f"no attempt of it is placed; the last was attempt {record.attempt}"
    if fact.attempt != record.attempt:
        return f"a fact about attempt {fact.attempt}, and attempt {record.attempt} is placed"
    if fact.node != record.placement.node:
        return f"a fact from {fact.node}, and attempt {record.attempt} is placed on {record.placement.node}"
    return None


def _started(step: _Step, fact: RunStarted, placement: Placement) -> Outcome:
    record = step.record
    if record.state is JobState.STOPPING or record.started_ns:
        return _ignored(record, f"it is {record.state.value} already")
    state = JobState.PROFILING if record.state is JobState.PROFILING else JobState.RUNNING
    what = "is measured" if state is JobState.PROFILING else "runs"
    reason = f"{what} on GPU {placement.gpu} of {placement.node}"
    return Outcome(step.to(state, reason, started_ns=fact.time_ns or step.now_ns))


def _checkpointed(step: _Step, fact: RunCheckpointed) -> Outcome:
    record = step.record
    if fact.time_ns <= record.checkpointed_ns:
        return _ignored(record, "this checkpoint, or a later one, is counted already")
    return Outcome(replace(record, checkpoints=record.checkpoints + 1, checkpointed_ns=fact.time_ns))


def _evicted(step: _Step, fact: RunEvicted, placement: Placement) -> Outcome:
    if step.record.state is JobState.STOPPING:
        return _ignored(step.record, "it is stopping already")
    return _stop(step, placement, _because("stopped by its node", f"{fact.cause.value} {fact.reason}".strip()))


def _exited(step: _Step, fact: RunExited, placement: Placement) -> Outcome:
    record, status = step.record, _bounded(fact.exit)
    how = status.describe()
    over = step.on(
        placement=None,
        last_exit=status,
        started_ns=record.started_ns or fact.started_ns,
        **_counted(record, status),
    )
    if status.succeeded:
        return _left(over.to(JobState.FINISHED, f"{how} on {placement.node}"), placement)
    if record.cancel_requested:
        return _left(over.to(JobState.CANCELLED, record.reason), placement)
    if status.stopped_by is StopCause.BREACH:
        return _left(over.to(JobState.FAILED, f"{how}; it is not tried again"), placement)
    if status.stopped_by is not None:
        return _left(over.to(JobState.PENDING, f"back in the queue: {how}"), placement)
    return _failed(over, status, placement)


def _bounded(status: ExitStatus) -> ExitStatus:
    """Cut the texts that a node may send at any length."""
    error, reason = status.error, status.stop_reason
    return replace(
        status,
        error=None if error is None else shortened(error),
        stop_reason=None if reason is None else shortened(reason),
    )


def _counted(record: JobRecord, status: ExitStatus) -> dict[str, int]:
    """Add to the one counter that an exit belongs to."""
    if status.succeeded:
        return {}
    if status.stopped_by not in (None, StopCause.BREACH):
        return {"evictions": record.evictions + 1}
    if status.lost and status.stopped_by is None:
        return {"losses": record.losses + 1}
    return {"failures": record.failures + 1}


def _failed(step: _Step, status: ExitStatus, placement: Placement) -> Outcome:
    record, policy, how = step.record, step.policy, status.describe()
    times, limit = (record.losses, policy.max_losses) if status.lost else (record.failures, record.spec.retries)
    if times > limit:
        return _left(step.to(JobState.FAILED, f"{how}; attempt {record.attempt} was the last one allowed"), placement)
    at_ns = step.now_ns + delay_ns(record, times, policy)
    after = step.to(JobState.PENDING, f"{how}; it will be tried again", not_before_ns=at_ns)
    return _left(after, placement, Wake(at_ns=at_ns))


def _stop(step: _Step, placement: Placement, reason: str, **changes: Any) -> Outcome:
    after = step.to(JobState.STOPPING, reason, **changes)
    return Outcome(after, (_decide(placement, after, reason),))


def _left(after: JobRecord, placement: Placement, *more: Instruction) -> Outcome:
    """The attempt is over: its GPU is free, and users are told if the job has ended."""
    ended = _ended(after)
    return Outcome(after, (*ended.instructions, _decide(placement, after, after.reason), *more))


def _ended(after: JobRecord) -> Outcome:
    event = terminal_event(after)
    return Outcome(after, (Announce(event=event),) if event is not None else ())


def _decide(placement: Placement, after: JobRecord, cause: str) -> Decide:
    about = f"{after.tenant}/{after.job}#{after.attempt}"
    return Decide(node=placement.node, gpu=placement.gpu, cause=f"{about}: {shortened(cause, DETAIL_LENGTH)}")


def _because(what: str, why: str) -> str:
    return f"{what}: {why}" if why else what
