"""When the evictor orders that offline work leaves a device."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muxflow.contracts import DeviceCondition
from muxflow_decisions.eviction.order import (
    CarriedOut,
    Evict,
    EvictionPolicy,
    Failed,
    Look,
    OrderMemory,
    OrderOutcome,
    OrderStimulus,
    Sight,
    advance,
    validate,
)

SECOND = 1_000_000_000
START = 500 * SECOND
POLICY = EvictionPolicy(evict_after_s=10, repeat_first_s=1, repeat_longest_s=8)


def sight(condition: DeviceCondition = DeviceCondition.OVERLIMIT, **changes: Any) -> Sight:
    values: dict[str, Any] = {"since_ns": START, "epoch": 7, "cause": "online activity 97 % ≥ 90 %", "fresh": True}
    return Sight(condition=condition, **(values | changes))


def act(memory: OrderMemory, stimulus: OrderStimulus, after_s: float) -> OrderOutcome:
    outcome = advance(memory, stimulus, now_ns=START + int(after_s * SECOND), policy=POLICY)
    validate(outcome.memory)
    return outcome


def look(memory: OrderMemory, after_s: float, **changes: Any) -> OrderOutcome:
    return act(memory, Look(sight=sight(**changes)), after_s)


@pytest.mark.parametrize("condition", [DeviceCondition.INIT, DeviceCondition.HEALTHY, DeviceCondition.UNHEALTHY])
def test_nobody_is_evicted_from_a_device_that_is_not_over_its_limit(condition: DeviceCondition) -> None:
    assert look(OrderMemory(), 1000, condition=condition).order is None


def test_an_overlimit_evicts_when_it_has_lasted() -> None:
    early = look(OrderMemory(), 9.9)
    assert early.order is None
    late = look(early.memory, 10)
    assert late.order == Evict(hard=False, cause="online activity 97 % ≥ 90 %; overlimit for 10.0 s", epoch=7, repeat=0)


def test_a_hard_overlimit_and_a_disabled_device_evict_at_once() -> None:
    hard = look(OrderMemory(), 0, hard=True).order
    assert hard is not None
    assert (hard.hard, hard.cause) == (True, "online activity 97 % ≥ 90 %; hard overlimit for 0.0 s")
    disabled = look(OrderMemory(), 0, condition=DeviceCondition.DISABLED, cause="disabled by an operator").order
    assert disabled is not None
    assert (disabled.hard, disabled.cause) == (False, "disabled by an operator")
    lost = look(OrderMemory(), 0, condition=DeviceCondition.DISABLED, hard=True, cause="disabled; it is lost").order
    assert lost is not None
    assert (lost.hard, lost.cause) == (True, "disabled; it is lost")


def test_an_overlimit_that_becomes_hard_is_ordered_again_at_once() -> None:
    ordered = look(OrderMemory(), 10).memory
    again = look(ordered, 10.1, epoch=8, hard=True).order
    assert again is not None
    assert (again.hard, again.repeat) == (True, 0)


def test_what_a_dead_monitor_said_last_evicts_nobody() -> None:
    assert look(OrderMemory(), 1000, hard=True, fresh=False).order is None


def test_one_order_is_given_for_a_change_while_it_is_not_answered() -> None:
    memory = look(OrderMemory(), 10).memory
    assert look(memory, 1000).order is None


@pytest.mark.parametrize("answer", [CarriedOut(epoch=7), Failed(epoch=7)])
def test_an_order_is_repeated_with_doubled_waits_while_its_reason_lasts(answer: OrderStimulus) -> None:
    memory, at_s = look(OrderMemory(), 10).memory, 10.0
    for repeat, wait_s in enumerate([1, 2, 4, 8, 8], start=1):
        memory = act(memory, answer, at_s).memory
        early = look(memory, at_s + wait_s - 0.1)
        assert early.order is None
        at_s += wait_s
        outcome = look(memory, at_s)
        assert outcome.order is not None
        assert outcome.order.repeat == repeat
        memory = outcome.memory


def test_an_answer_to_an_order_that_is_no_longer_the_last_changes_nothing() -> None:
    memory = look(OrderMemory(), 10).memory
    assert act(memory, CarriedOut(epoch=6), 11).memory is memory


def test_a_page_whose_clock_is_ahead_is_believed_no_more_than_ones_own() -> None:
    ahead = {"since_ns": START + 10_000 * SECOND}
    memory = look(OrderMemory(), 0, **ahead).memory
    assert look(memory, 9.9, **ahead).order is None
    assert look(memory, 10, **ahead).order is not None


sights = st.builds(
    Sight,
    condition=st.sampled_from(DeviceCondition),
    since_ns=st.integers(0, 2 * START),
    hard=st.booleans(),
    epoch=st.integers(0, 3),
    cause=st.just("because"),
    fresh=st.booleans(),
)
stimuli = st.one_of(
    st.builds(Look, sight=sights),
    st.builds(CarriedOut, epoch=st.integers(0, 3)),
    st.builds(Failed, epoch=st.integers(0, 3)),
)


@given(st.lists(st.tuples(st.floats(0, 30), stimuli), max_size=40))
def test_whatever_is_seen_orders_have_a_reason_and_never_come_in_floods(
    scenario: list[tuple[float, OrderStimulus]],
) -> None:
    memory, now_s = OrderMemory(), 0.0
    last: dict[int, float] = {}
    for pause_s, stimulus in scenario:
        now_s += pause_s
        outcome = act(memory, stimulus, now_s)
        memory = outcome.memory
        if outcome.order is None:
            continue
        assert isinstance(stimulus, Look)
        assert stimulus.sight.fresh
        assert stimulus.sight.condition in (DeviceCondition.OVERLIMIT, DeviceCondition.DISABLED)
        epoch = outcome.order.epoch
        if outcome.order.repeat:
            assert now_s - last[epoch] >= POLICY.repeat_first_s - 1e-6
        last[epoch] = now_s
