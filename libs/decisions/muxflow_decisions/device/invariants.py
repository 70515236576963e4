"""What must be true of every memory, whatever happened to the device."""

from __future__ import annotations

from collections.abc import Iterator

from muxflow.contracts import DeviceCondition
from muxflow_decisions.device.gate import GateState
from muxflow_decisions.device.limits import Level, holding
from muxflow_decisions.device.memory import STORY_LENGTH, DeviceMemory
from muxflow_decisions.device.policy import DevicePolicy


class InvalidMemory(AssertionError):  # noqa: N818 - it is a memory that is invalid, and an assertion that fails
    """A memory that the machine cannot have made. `broken` lists the rules it breaks."""

    def __init__(self, memory: DeviceMemory, broken: tuple[str, ...]) -> None:
        super().__init__(f"{memory.condition.value}, epoch {memory.epoch}: " + "; ".join(broken))
        self.broken = broken


def validate(memory: DeviceMemory, policy: DevicePolicy) -> None:
    """Raise `InvalidMemory` if a rule is broken."""
    broken = tuple(rule for rules in (_gate, _limits, _calm, _telling) for rule in rules(memory, policy))
    if broken:
        raise InvalidMemory(memory, broken)


def _gate(memory: DeviceMemory, policy: DevicePolicy) -> Iterator[str]:
    state, budget = memory.gate.state, memory.gate.budget_permille
    largest = policy.beacon_budget_permille if memory.budget.beacons else policy.budget_max_permille
    match memory.condition:
        case DeviceCondition.INIT:
            if state is not GateState.FROZEN:
                yield "open where nothing may run"
        case DeviceCondition.OVERLIMIT | DeviceCondition.DISABLED:
            if state is not (GateState.FROZEN if memory.hard else GateState.TRICKLE):
                yield "frozen where it is hard, and trickling where it is not"
        case DeviceCondition.UNHEALTHY:
            held_back = any(holding(memory.latches))
            most = policy.unhealthy_budget_permille if held_back else largest
            if state is not GateState.OPEN or budget > most:
                yield "a small budget while an unhealthy limit holds"
        case DeviceCondition.HEALTHY:
            if state is not GateState.OPEN or budget > largest:
                yield "open within the law while healthy"
    if memory.hard and memory.condition not in (DeviceCondition.OVERLIMIT, DeviceCondition.DISABLED):
        yield "hard where nothing is evicted"


def _limits(memory: DeviceMemory, _: DevicePolicy) -> Iterator[str]:
    if memory.condition is DeviceCondition.HEALTHY and any(holding(memory.latches)):
        yield "healthy beyond a limit"
    if memory.condition is DeviceCondition.UNHEALTHY and any(
        limit.level is not Level.UNHEALTHY for limit, _ in holding(memory.latches)
    ):
        yield "only unhealthy beyond an Overlimit"
    if memory.lost and not memory.hard:
        yield "a lost GPU on which something may trickle"
    if memory.lost and memory.condition not in (DeviceCondition.OVERLIMIT, DeviceCondition.DISABLED):
        yield "a lost GPU that may be used"


def _calm(memory: DeviceMemory, policy: DevicePolicy) -> Iterator[str]:
    if memory.calm_ns is not None and any(holding(memory.latches)):
        yield "calm beyond a limit"
    if memory.calm_owed_ns and memory.condition in (DeviceCondition.HEALTHY, DeviceCondition.UNHEALTHY):
        yield "it admits and still owes calm"
    if not memory.calm_owed_ns and memory.condition is DeviceCondition.OVERLIMIT:
        yield "an Overlimit that owes no calm"
    if memory.calm_owed_ns > max(policy.readmit_longest_s * 1_000_000_000, 1):
        yield "it owes more calm than there is to owe"


def _telling(memory: DeviceMemory, _: DevicePolicy) -> Iterator[str]:
    if not memory.cause:
        yield "no cause"
    if len(memory.story) > STORY_LENGTH:
        yield f"a story of more than {STORY_LENGTH} changes"
    if memory.story and (memory.story[-1].state, memory.story[-1].epoch) != (memory.condition, memory.epoch):
        yield "the story ends elsewhere"
