"""The device machine: facts are taken in first, then the table says where they lead, then the gate follows.

What it holds on to:

- Nothing offline runs before the readings are known, nor while the state says that it must not: the gate is a function
  of state, hardness and budget.
- No threshold is on a total of the device: an offline job alone never makes a device unhealthy, short of heat.
- An Overlimit is paid for with calm, twice as much for each recent one, and neither a new monitor nor an operator who
  disables and enables the device makes it cheaper.
"""

from __future__ import annotations

from typing import Any, Final

from msgspec.structs import replace

from muxflow.contracts import DeviceCondition
from muxflow_decisions.device import budget, causes, limits, stimuli
from muxflow_decisions.device.gate import FROZEN, Gate, GateState
from muxflow_decisions.device.instructions import Alert, Instruction, SetGate, Severity, Tell
from muxflow_decisions.device.limits import Level
from muxflow_decisions.device.memory import STORY_LENGTH, Change, DeviceMemory, Outcome
from muxflow_decisions.device.policy import DevicePolicy
from muxflow_decisions.device.readings import Readings
from muxflow_decisions.device.stimuli import (
    Disable,
    Enable,
    Fault,
    Lost,
    MonitorStarted,
    Read,
    Restored,
    Stimulus,
)
from muxflow_decisions.device.table import TABLE, Effect, Guard, Row, Trigger

_SECOND_NS: Final = 1_000_000_000
_OVERLIMITS_KEPT: Final = 16
"""More never matter: the calm has long reached its bound."""


def advance(memory: DeviceMemory, stimulus: Stimulus, *, now_ns: int, policy: DevicePolicy) -> Outcome:
    """Take one step. `now_ns` is monotonic; the times of samples are of the same clock."""
    step = _Step(memory, stimulus, now_ns, policy)
    match stimulus:
        case Read(readings=readings):
            _take_in(step, readings)
            _move(step, Trigger.READ)
            _apply_law(step, readings)
        case Fault():
            _take_in_fault(step, stimulus)
        case Lost():
            step.learn(lost=True, calm_ns=None)
            _move(step, Trigger.LOST)
            if not memory.lost:
                step.alert("critical", causes.lost(stimulus))
        case Restored():
            step.learn(lost=False, calm_ns=None)
            if memory.lost:
                step.alert("info", "the GPU answers again")
        case Disable():
            _move(step, Trigger.DISABLE)
        case Enable():
            _move(step, Trigger.ENABLE)
        case MonitorStarted():
            step.learn(lost=False, latches={}, read_ns=None, calm_ns=None)
            _move(step, Trigger.MONITOR)
    _set_gate(step)
    return Outcome(step.memory, tuple(step.instructions))


class _Step:
    """One call of `advance`: the memory as it changes, and what is to be done."""

    def __init__(self, memory: DeviceMemory, stimulus: Stimulus, now_ns: int, policy: DevicePolicy) -> None:
        self.before = memory
        self.memory = memory
        self.stimulus = stimulus
        self.now_ns = now_ns
        self.policy = policy
        self.instructions: list[Instruction] = []

    def learn(self, **facts: Any) -> None:
        """Take facts in; the very same memory stays when they are none."""
        changed = replace(self.memory, **facts)
        if changed != self.memory:
            self.memory = changed

    def alert(self, severity: Severity, message: str) -> None:
        self.instructions.append(Alert(severity=severity, message=message))


# --- facts


def _take_in(step: _Step, readings: Readings) -> None:
    """Hold a sample against the limits, and see how long it has been calm."""
    memory, policy = step.memory, step.policy
    latches = limits.look(memory.latches, readings, policy)
    held = any(latch.held for latch in latches.values())
    gap = memory.read_ns is None or readings.now_ns - memory.read_ns > policy.gap_s * _SECOND_NS
    calm_ns = memory.calm_ns
    if held or memory.lost:
        calm_ns = None
    elif gap or calm_ns is None:
        calm_ns = readings.now_ns
    step.learn(latches=latches, read_ns=readings.now_ns, calm_ns=calm_ns)
    _tell_of_blindness(step, readings.now_ns)


def _tell_of_blindness(step: _Step, now_ns: int) -> None:
    """Have a person look when something cannot be seen, but not each time that it comes and goes."""
    told_ns = step.memory.blind_ns
    if told_ns is not None and now_ns - told_ns < step.policy.recent_s * _SECOND_NS:
        return
    words = [latch.words for limit, latch in limits.holding(step.memory.latches) if limit.blind]
    if words:
        step.learn(blind_ns=now_ns)
        step.alert("warning", f"{'; '.join(words)}: offline work is slowed and not admitted")


def _take_in_fault(step: _Step, fault: Fault) -> None:
    if not fault.fatal:
        return
    step.learn(calm_ns=None)
    _move(step, Trigger.FAULT)
    step.alert("critical", causes.fault(fault))


# --- from state to state


def _move(step: _Step, trigger: Trigger) -> None:
    """Follow the first row of the table that fits, if there is one."""
    for row in TABLE:
        if (row.state, row.trigger) == (step.memory.condition, trigger) and _holds(row.guard, step):
            _follow(step, row)
            return


def _holds(guard: Guard, step: _Step) -> bool:  # noqa: PLR0911 - one per guard
    memory = step.memory
    match guard:
        case Guard.ALWAYS:
            return True
        case Guard.HARD:
            return memory.lost or _any_holds(memory, Level.HARD)
        case Guard.SOFT_HARD:
            return not memory.hard and _holds(Guard.HARD, step)
        case Guard.SOFT:
            return not memory.hard
        case Guard.OVERLIMIT:
            return _any_holds(memory, Level.OVERLIMIT)
        case Guard.UNHEALTHY:
            return not memory.calm_owed_ns and _any_holds(memory, Level.UNHEALTHY)
        case Guard.CALM:
            # A limit that is only on its way to hold does not break the calm, but nobody is let in meanwhile.
            calm_since = memory.calm_ns if not memory.latches else None
            at_ns = memory.read_ns if memory.read_ns is not None else step.now_ns
            return calm_since is not None and at_ns - calm_since >= memory.calm_needed_ns(step.policy)
        case Guard.GONE:
            return memory.lost


def _any_holds(memory: DeviceMemory, level: Level) -> bool:
    return any(limits.holding(memory.latches, level))


def _latency_holds(memory: DeviceMemory) -> bool:
    return any(limit.latency for limit, _ in limits.holding(memory.latches))


def _follow(step: _Step, row: Row) -> None:
    before = step.memory
    cause = causes.cause_of(step.stimulus, row, before, step.policy)
    hard = row.effect in (Effect.FREEZE_HARD, Effect.HARDEN, Effect.FORBID_HARD)
    facts: dict[str, Any] = {"condition": row.next, "hard": hard, "cause": cause, "epoch": before.epoch + 1}
    if row.next is not before.condition or row.effect is Effect.START:
        facts["since_ns"] = step.now_ns
    if row.effect in (Effect.FREEZE, Effect.FREEZE_HARD) and not before.calm_owed_ns:
        facts |= _owing(step)
    if row.effect is Effect.ADMIT:
        facts["calm_owed_ns"] = 0
    elif row.trigger is Trigger.READ and _latency_holds(before):
        facts["budget"] = budget.halve(before.budget)
    change = Change(
        time_ns=step.now_ns,
        state=row.next,
        epoch=before.epoch + 1,
        stimulus=stimuli.name(step.stimulus),
        cause=cause,
    )
    step.learn(**facts, story=(*before.story[-(STORY_LENGTH - 1) :], change))
    _tell(step, before)


def _owing(step: _Step) -> dict[str, Any]:
    """Open an Overlimit: what calm it costs."""
    policy, now_ns = step.policy, step.now_ns
    recent = tuple(at for at in step.memory.overlimits if now_ns - at < policy.recent_s * _SECOND_NS)
    recent = (*recent[-(_OVERLIMITS_KEPT - 1) :], now_ns)
    owed_s = min(policy.readmit_s * 2 ** (len(recent) - 1), policy.readmit_longest_s)
    if len(recent) > 1 and owed_s >= policy.readmit_longest_s:
        step.alert(
            "warning",
            f"{len(recent)} Overlimits within {policy.recent_s:.0f} s: "
            f"offline work comes back only after {owed_s:.0f} s of calm",
        )
    return {"overlimits": recent, "calm_owed_ns": int(owed_s * _SECOND_NS)}


def _tell(step: _Step, before: DeviceMemory) -> None:
    after = step.memory
    step.instructions.append(
        Tell(
            previous=before.condition if before.story else None,
            state=after.condition,
            hard=after.hard,
            cause=after.cause,
            epoch=after.epoch,
            since_ns=after.since_ns,
        )
    )


# --- the gate


def _apply_law(step: _Step, readings: Readings) -> None:
    """Let the budget follow the sample where the state has one, and begin from nothing where it has none."""
    memory, policy = step.memory, step.policy
    if memory.condition not in (DeviceCondition.HEALTHY, DeviceCondition.UNHEALTHY):
        step.learn(budget=budget.freeze(memory.budget, now_ns=readings.now_ns))
        return
    held_back = any(limits.holding(memory.latches))
    cap = policy.unhealthy_budget_permille if held_back else budget.largest_permille(readings, policy)
    step.learn(budget=budget.apply(memory.budget, readings, cap_permille=cap, policy=policy))


def gate_of(memory: DeviceMemory, policy: DevicePolicy) -> Gate:
    """What the gate is, by state and budget."""
    match memory.condition:
        case DeviceCondition.HEALTHY | DeviceCondition.UNHEALTHY:
            share = memory.budget.budget_permille
            window_us = budget.window_us(share, policy, beacons=memory.budget.beacons)
            return Gate(state=GateState.OPEN, budget_permille=share, window_us=window_us)
        case DeviceCondition.OVERLIMIT | DeviceCondition.DISABLED if not memory.hard:
            trickle = policy.trickle_budget_permille
            return Gate(state=GateState.TRICKLE, budget_permille=trickle, window_us=policy.window_min_us)
        case _:
            return FROZEN


def _set_gate(step: _Step) -> None:
    """Set the gate when it or its epoch has changed. It goes first: protection before words."""
    gate = gate_of(step.memory, step.policy)
    if gate == step.memory.gate and step.memory.epoch == step.before.epoch:
        return
    step.learn(gate=gate)
    step.instructions.insert(0, SetGate(gate=gate, epoch=step.memory.epoch))
