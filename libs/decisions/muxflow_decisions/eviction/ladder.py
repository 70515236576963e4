"""How one attempt is stopped: the same ladder for every stop, whatever its cause.

    freeze → checkpoint → terminate → disconnect → kill → ended
             only if there is something to save and time for it

A job that broke a rule goes from *freeze* to *disconnect*: a process without xCUDA obeys no gate and drains nothing, so
that SIGTERM would do to its neighbours what SIGKILL does.

Each step has a deadline, and the end of the whole is known from the start. A client of MPS that is killed with work in
flight takes its neighbours down, so nothing is killed before MPS was asked to disconnect it (`terminate_client`).
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from typing import Annotated, Final

import msgspec
from msgspec import Meta
from msgspec.structs import replace

from muxflow.contracts import StopCause
from muxflow_decisions.device.gate import FROZEN, Gate, GateState, JobPhase, WindowUs

_SECOND_NS: Final = 1_000_000_000
STORY_LENGTH: Final = 32
"""Steps that a stop keeps for its story."""

_PositiveS = Annotated[float, Meta(gt=0, le=3600)]


class LadderPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of the ladder. What a job declares for itself is in `Begin`."""

    checkpoint_longest_s: Annotated[float, Meta(ge=0, le=3600)] = 120.0
    """Bound on any job's time to save: the online side waits for the memory."""
    stop_longest_s: Annotated[float, Meta(ge=0, le=3600)] = 300.0
    """Bound on any job's time to obey SIGTERM."""
    lease_grace_s: Annotated[float, Meta(ge=0, le=3600)] = 30.0
    """Bound on the whole when the lease is lost: the scheduler counts on it."""
    hard_grace_s: _PositiveS = 1.0
    """Bound on the time to obey SIGTERM in hard Overlimit: what is in flight drains in much less."""
    disconnect_s: _PositiveS = 2.0
    """How long MPS may take to disconnect a job that has not obeyed; it answers in milliseconds unless it hangs."""
    kill_again_s: _PositiveS = 1.0
    """SIGKILL is sent again after this while something is left: a process may have forked just then."""
    trickle_budget_permille: Annotated[int, Meta(ge=0, le=50)] = 50
    """What a job gets that saves its state."""
    trickle_window_us: WindowUs = 500


class Step(StrEnum):
    """Where a stop is; all but *freeze* and *drained*, which are only told in passing."""

    FREEZE = "freeze"
    CHECKPOINT = "checkpoint"
    TERMINATE = "terminate"
    DRAINED = "drained"
    DISCONNECT = "disconnect"
    KILL = "kill"
    ENDED = "ended"


# --- stimuli


class Begin(msgspec.Struct, frozen=True, kw_only=True):
    """Stop the attempt. Given again while it stops, it can only take time away."""

    cause: StopCause
    hard: bool = False
    """Nothing may trickle and nothing is saved."""
    has_checkpoint: bool = False
    """The job declares a checkpoint signal."""
    handles_signal: bool = False
    """Its program handles that signal; else the signal would end it."""
    checkpoint_grace_s: Annotated[float, Meta(ge=0)] = 0.0
    """How long the job declares to need to save."""
    stop_grace_s: Annotated[float, Meta(ge=0)] = 0.0
    """How long it declares to need to obey SIGTERM."""


class Checkpointed(msgspec.Struct, frozen=True, kw_only=True):
    """The job has saved its state."""


class NotAsked(msgspec.Struct, frozen=True, kw_only=True):
    """The checkpoint signal could not be sent after all."""


class Drained(msgspec.Struct, frozen=True, kw_only=True):
    """The job page says that nothing is in flight and nothing more will be launched. The page is untrusted input, so
    this only takes away what the job may still do.
    """


class Disconnected(msgspec.Struct, frozen=True, kw_only=True):
    """MPS has answered for every client of the job, or there was none."""


class Exited(msgspec.Struct, frozen=True, kw_only=True):
    """Nothing of the attempt is left."""


class Clock(msgspec.Struct, frozen=True, kw_only=True):
    """Time has passed; to be given at `Stop.deadline_ns` at the latest."""


LadderStimulus = Begin | Checkpointed | NotAsked | Drained | Disconnected | Exited | Clock


# --- instructions, to be carried out in their order


class SetJobGate(msgspec.Struct, frozen=True, kw_only=True):
    """Write this to the job's control page."""

    gate: Gate
    phase: JobPhase
    deadline_ns: int | None
    """Of the phase, by the caller's clock."""


class AskCheckpoint(msgspec.Struct, frozen=True, kw_only=True):
    """Send the declared signal; `Checkpointed` or `NotAsked` may follow."""


class Terminate(msgspec.Struct, frozen=True, kw_only=True):
    """Send SIGTERM."""


class TerminateClient(msgspec.Struct, frozen=True, kw_only=True):
    """Have MPS disconnect each process of the job, without waiting for it; `Disconnected` follows."""


class Kill(msgspec.Struct, frozen=True, kw_only=True):
    """SIGKILL everything of the attempt."""


class Tell(msgspec.Struct, frozen=True, kw_only=True):
    """The stop has come to this step."""

    step: Step
    detail: str = ""


LadderInstruction = SetJobGate | AskCheckpoint | Terminate | TerminateClient | Kill | Tell


# --- the machine


class StopLine(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a stop's story."""

    time_ns: int
    step: Step
    detail: str


class Stop(msgspec.Struct, frozen=True, kw_only=True):
    """State of one stop. Times are by the monotonic clock that `advance` is driven with."""

    step: Step | None = None
    """None: nobody wants it stopped."""
    cause: StopCause | None = None
    """Of the first `Begin`."""
    hard: bool = False
    lease: bool = False
    """The lease is lost: the scheduler counts on the end, and nothing may put it off."""
    grace_s: float = 0.0
    """Time to obey SIGTERM."""
    began_ns: int = 0
    deadline_ns: int | None = None
    """When the step ends by itself; None before the beginning and after the end."""
    kill_ns: int = 0
    """When SIGKILL comes, if nothing ends the stop before and the clock is punctual."""
    drained: bool = False
    disconnect_asked: bool = False
    kills: int = 0
    story: tuple[StopLine, ...] = ()


class LadderOutcome(msgspec.Struct, frozen=True):
    """Result of one step."""

    stop: Stop
    instructions: tuple[LadderInstruction, ...] = ()


def advance(stop: Stop, stimulus: LadderStimulus, *, now_ns: int, policy: LadderPolicy) -> LadderOutcome:
    """Take one step. What is out of place (an answer to nothing, anything after the end) changes nothing."""
    if stop.step is Step.ENDED:
        return LadderOutcome(stop)
    climb = _Climb(stop, now_ns, policy)
    match stimulus:
        case Begin():
            climb.begin(stimulus) if stop.step is None else climb.tighten(stimulus)
        case Exited():
            climb.exited()
        case Checkpointed():
            climb.leave(Step.CHECKPOINT, "saved")
        case NotAsked():
            climb.leave(Step.CHECKPOINT, "the program does not take the signal")
        case Drained():
            climb.drained()
        case Disconnected():
            climb.leave(Step.DISCONNECT, "disconnected from MPS")
        case Clock():
            pass
    climb.overdue()
    return LadderOutcome(climb.stop, tuple(climb.instructions))


def longest_s(begin: Begin, policy: LadderPolicy) -> float:
    """How long a stop lasts at most, from `Begin` to the first SIGKILL, with a punctual clock."""
    lease = begin.cause is StopCause.LEASE
    return _save_s(begin, policy) + _grace_s(begin, policy) + _disconnect_s(policy, lease=lease)


def _save_s(begin: Begin, policy: LadderPolicy) -> float:
    """Time to save the job's state; 0 if there is none for it."""
    hurried = begin.hard or begin.cause in (StopCause.LEASE, StopCause.BREACH)
    if hurried or not (begin.has_checkpoint and begin.handles_signal):
        return 0.0
    return min(begin.checkpoint_grace_s, policy.checkpoint_longest_s)


def _grace_s(begin: Begin, policy: LadderPolicy) -> float:
    """Time to obey SIGTERM."""
    if begin.cause is StopCause.BREACH:
        return 0.0
    bounds = [begin.stop_grace_s, policy.stop_longest_s]
    if begin.hard:
        bounds.append(policy.hard_grace_s)
    if begin.cause is StopCause.LEASE:
        bounds.append(policy.lease_grace_s - _disconnect_s(policy, lease=True))
    return min(bounds)


def _disconnect_s(policy: LadderPolicy, *, lease: bool) -> float:
    """Time that MPS gets to disconnect the job; when the lease is lost, at most half of what is left."""
    return min(policy.disconnect_s, policy.lease_grace_s / 2) if lease else policy.disconnect_s


class _Climb:
    """One call of `advance`: the stop as it changes, and what is to be done."""

    def __init__(self, stop: Stop, now_ns: int, policy: LadderPolicy) -> None:
        self.stop = stop
        self.instructions: list[LadderInstruction] = []
        self._now_ns = now_ns
        self._policy = policy

    def begin(self, begin: Begin) -> None:
        save_s = _save_s(begin, self._policy)
        self.stop = replace(
            self.stop,
            cause=begin.cause,
            hard=begin.hard,
            lease=begin.cause is StopCause.LEASE,
            grace_s=_grace_s(begin, self._policy),
            began_ns=self._now_ns,
            kill_ns=self._in(longest_s(begin, self._policy)),
        )
        self.instructions.append(SetJobGate(gate=FROZEN, phase=JobPhase.RUN, deadline_ns=None))
        self._tell(Step.FREEZE, begin.cause.value)
        if begin.cause is StopCause.BREACH:
            self._disconnect("it may be past its gate")
        elif save_s:
            self._to(Step.CHECKPOINT, self._in(save_s), "asked to save")
            self._set_gate()
            self.instructions.append(AskCheckpoint())
        else:
            self._terminate("")

    def tighten(self, begin: Begin) -> None:
        """Take another cause in: it may shorten what is left and never lengthens it."""
        before = self.stop
        hard, lease = before.hard or begin.hard, before.lease or begin.cause is StopCause.LEASE
        grace_s = min(before.grace_s, _grace_s(replace(begin, stop_grace_s=before.grace_s), self._policy))
        self.stop = replace(before, hard=hard, lease=lease, grace_s=grace_s)
        end_ns = min(before.kill_ns, self._in(grace_s + _disconnect_s(self._policy, lease=lease)))
        match before.step:
            case Step.CHECKPOINT | Step.TERMINATE if begin.cause is StopCause.BREACH:
                self.stop = replace(self.stop, kill_ns=end_ns)
                self._disconnect("it may be past its gate")
            case Step.CHECKPOINT if hard or lease:
                self._terminate("no time left to save")
            case Step.TERMINATE:
                deadline_ns = min(self._deadline_ns, self._in(grace_s))
                self.stop = replace(self.stop, kill_ns=end_ns, deadline_ns=deadline_ns)
                if self.stop != before:
                    self._set_gate()
            case Step.DISCONNECT:
                self.stop = replace(self.stop, kill_ns=end_ns, deadline_ns=min(self._deadline_ns, end_ns))

    def leave(self, step: Step, why: str) -> None:
        """Go on from this step, if the stop is at it."""
        if self.stop.step is step:
            self._next(why)

    def drained(self) -> None:
        if self.stop.drained or self.stop.step not in (Step.TERMINATE, Step.DISCONNECT):
            return
        self.stop = replace(self.stop, drained=True)
        self._tell(Step.DRAINED, "")
        if self.stop.step is Step.TERMINATE:
            self._set_gate()

    def exited(self) -> None:
        if self.stop.step is None:
            return
        self._to(Step.ENDED, None, f"after {self.stop.step.value}")

    def overdue(self) -> None:
        """Go on from every step whose time is over; SIGKILL is repeated once a call."""
        while self.stop.deadline_ns is not None and self._now_ns >= self._deadline_ns:
            again = self.stop.step is Step.KILL
            self._next("its time is over")
            if again:
                return

    @property
    def _deadline_ns(self) -> int:
        return self._now_ns if self.stop.deadline_ns is None else self.stop.deadline_ns

    def _next(self, why: str) -> None:
        match self.stop.step:
            case Step.CHECKPOINT:
                self._terminate(why)
            case Step.TERMINATE:
                self._disconnect(why)
            case Step.DISCONNECT | Step.KILL:
                self._kill(why)

    def _terminate(self, why: str) -> None:
        grace_s = self.stop.grace_s
        kill_ns = self._in(grace_s + _disconnect_s(self._policy, lease=self.stop.lease))
        self.stop = replace(self.stop, kill_ns=kill_ns)
        self._to(Step.TERMINATE, self._in(grace_s), why)
        self._set_gate()
        self.instructions.append(Terminate())

    def _disconnect(self, why: str) -> None:
        # After a clock that came late MPS still gets its time: a client killed with work in flight hurts its
        # neighbours. Not when the lease is lost: then the job may be started elsewhere.
        wait_s = 0.0 if self.stop.lease else self._policy.disconnect_s
        deadline_ns = max(self.stop.kill_ns, self._in(wait_s))
        self.stop = replace(self.stop, kill_ns=deadline_ns, disconnect_asked=True)
        self._to(Step.DISCONNECT, deadline_ns, why)
        self._set_gate()
        self.instructions.append(TerminateClient())

    def _kill(self, why: str) -> None:
        if self.stop.step is not Step.KILL:
            self._to(Step.KILL, None, why)
        self.stop = replace(self.stop, kills=self.stop.kills + 1, deadline_ns=self._in(self._policy.kill_again_s))
        self.instructions.append(Kill())

    def _to(self, step: Step, deadline_ns: int | None, detail: str) -> None:
        self.stop = replace(self.stop, step=step, deadline_ns=deadline_ns)
        self._tell(step, detail)

    def _tell(self, step: Step, detail: str) -> None:
        line = StopLine(time_ns=self._now_ns, step=step, detail=detail)
        self.stop = replace(self.stop, story=(*self.stop.story[-(STORY_LENGTH - 1) :], line))
        self.instructions.append(Tell(step=step, detail=detail))

    def _set_gate(self) -> None:
        stop = self.stop
        gate = FROZEN
        if not (stop.hard or stop.drained) and stop.step in (Step.CHECKPOINT, Step.TERMINATE):
            gate = Gate(
                state=GateState.TRICKLE,
                budget_permille=self._policy.trickle_budget_permille,
                window_us=self._policy.trickle_window_us,
            )
        self.instructions.append(SetJobGate(gate=gate, phase=_phase(stop), deadline_ns=stop.deadline_ns))

    def _in(self, seconds: float) -> int:
        return self._now_ns + int(seconds * _SECOND_NS)


def _phase(stop: Stop) -> JobPhase:
    if stop.step is Step.CHECKPOINT:
        return JobPhase.CHECKPOINT
    return JobPhase.STOP_HARD if stop.hard or stop.step is Step.DISCONNECT else JobPhase.STOP


def story(stop: Stop) -> list[str]:
    """Tell the steps of a stop, one line each, oldest first, with seconds since its beginning."""
    return [
        f"+{(line.time_ns - stop.began_ns) / _SECOND_NS:.3f} s  {line.step.value:<10}  {line.detail}".rstrip()
        for line in stop.story
    ]


def validate(stop: Stop) -> None:
    """Raise AssertionError if a rule is broken; the message lists all that are."""
    broken = tuple(_broken(stop))
    if broken:
        raise AssertionError(f"a stop at {stop.step}: " + "; ".join(broken))


def _broken(stop: Stop) -> Iterator[str]:
    if (stop.step is None) != (stop.cause is None):
        yield "a cause from the beginning on"
    if (stop.deadline_ns is None) != (stop.step in (None, Step.ENDED)):
        yield "a deadline, and only then, while it stops"
    if stop.step in (Step.FREEZE, Step.DRAINED):
        yield "a step that is only told in passing"
    if stop.kills and not stop.disconnect_asked:
        yield "killed before MPS was asked to disconnect it"
    if stop.kills and stop.step not in (Step.KILL, Step.ENDED):
        yield "killed before its time"
    if stop.step is Step.CHECKPOINT and (stop.hard or stop.lease):
        yield "it saves and there is no time for it"
    if stop.deadline_ns is not None and stop.step is not Step.KILL and stop.deadline_ns > stop.kill_ns:
        yield "a step that lasts beyond the end"
    if stop.step is not None and not stop.story:
        yield "no story"
