"""An executor compares what is wanted with what is there."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from muxflow.contracts import Attempt, GpuDecision, Launch, Purpose, Slot, StopCause
from muxflow_decisions.node import Decline, Forget, LocalAttempt, LocalState, Start, Stop, newer, reconcile


def attempt(job: str = "a", number: int = 1) -> Attempt:
    return Attempt(tenant="t", job=job, attempt=number)


def slot(job: str = "a", number: int = 1) -> Slot:
    return Slot(tenant="t", job=job, attempt=number, memory_quota_bytes=1, launch=Launch(command=("run",)))


def decision(
    *slots: Slot,
    gpu: str = "0",
    withdrawn: tuple[Attempt, ...] = (),
    session: str = "s",
    term: int = 1,
    generation: int = 1,
) -> GpuDecision:
    return GpuDecision(
        node="n",
        gpu=gpu,
        term=term,
        generation=generation,
        session=session,
        slots=slots,
        withdrawn=withdrawn,
        cause="told so",
    )


def local(state: LocalState, gpu: str = "0", *, reported: bool = False) -> LocalAttempt:
    return LocalAttempt(state=state, gpu=gpu, reported=reported)


LIVE = (LocalState.STARTING, LocalState.RUNNING)


def test_a_wanted_attempt_without_a_record_is_started() -> None:
    assert reconcile({"0": decision(slot())}, {}, session="s") == [Start(gpu="0", slot=slot())]


@pytest.mark.parametrize("state", LocalState)
def test_an_attempt_with_a_record_is_never_started(state: LocalState) -> None:
    assert reconcile({"0": decision(slot())}, {attempt(): local(state)}, session="s") == []


@pytest.mark.parametrize("state", LIVE)
def test_an_attempt_that_is_wanted_for_another_purpose_goes_on(state: LocalState) -> None:
    """One that has been measured is the same attempt, and runs."""
    wanted = decision(replace(slot(), purpose=Purpose.RUN), generation=2)
    assert reconcile({"0": wanted}, {attempt(): local(state)}, session="s") == []


@pytest.mark.parametrize("state", LIVE)
def test_an_attempt_that_is_no_longer_wanted_is_stopped_once(state: LocalState) -> None:
    stop = Stop(attempt=attempt(), cause=StopCause.DECISION, reason="told so")
    assert reconcile({"0": decision()}, {attempt(): local(state)}, session="s") == [stop]
    assert reconcile({"0": decision()}, {attempt(): local(LocalState.STOPPING)}, session="s") == []


def test_an_attempt_whose_gpu_has_no_known_decision_runs_on() -> None:
    assert reconcile({"0": None}, {attempt(): local(LocalState.RUNNING)}, session="s") == []


@pytest.mark.parametrize("state", [*LIVE, LocalState.STOPPING])
def test_the_next_attempt_on_a_gpu_waits_until_the_one_before_has_ended(state: LocalState) -> None:
    desired = {"0": decision(slot("b"))}
    instructions = reconcile(desired, {attempt("a"): local(state)}, session="s")
    assert not any(isinstance(instruction, Start) for instruction in instructions)
    ended = {attempt("a"): local(LocalState.ENDED)}
    assert reconcile(desired, ended, session="s") == [Start(gpu="0", slot=slot("b"))]


def test_a_job_has_one_live_attempt_on_the_node_even_on_different_gpus() -> None:
    desired = {"0": decision(), "1": decision(slot("a", 2), gpu="1")}
    assert reconcile(desired, {attempt("a", 1): local(LocalState.STOPPING)}, session="s") == []


def test_a_decision_with_two_slots_starts_one_of_them() -> None:
    instructions = reconcile({"0": decision(slot("a"), slot("b"))}, {}, session="s")
    assert instructions == [Start(gpu="0", slot=slot("a"))]


def test_without_a_lease_everything_stops_and_nothing_starts() -> None:
    desired = {"0": decision(slot("a")), "1": decision(slot("b"), gpu="1", withdrawn=(attempt("c"),))}
    stop = Stop(attempt=attempt("a"), cause=StopCause.LEASE, reason="the node's lease is lost")
    assert reconcile(desired, {attempt("a"): local(LocalState.RUNNING)}, session=None) == [stop]


def test_nothing_is_started_or_answered_from_a_decision_for_another_session() -> None:
    desired = {"0": decision(slot(), session="old", withdrawn=(attempt("b"),))}
    assert reconcile(desired, {}, session="s") == []
    assert reconcile(desired, {}, session="s", draining=True) == []


def test_an_attempt_withdrawn_before_it_started_is_answered_and_not_started_later() -> None:
    desired = {"0": decision(withdrawn=(attempt(),))}
    decline = Decline(attempt=attempt(), gpu="0", cause=StopCause.DECISION, reason="told so")
    assert reconcile(desired, {}, session="s") == [decline]
    assert reconcile(desired, {attempt(): local(LocalState.ENDED)}, session="s") == []


def test_a_withdrawn_attempt_that_lives_is_stopped_and_not_declined() -> None:
    desired = {"0": decision(withdrawn=(attempt(),))}
    stop = Stop(attempt=attempt(), cause=StopCause.DECISION, reason="told so")
    assert reconcile(desired, {attempt(): local(LocalState.RUNNING)}, session="s") == [stop]


def test_draining_stops_what_runs_and_declines_what_would_start() -> None:
    desired = {"0": decision(slot("a")), "1": decision(slot("b"), gpu="1")}
    instructions = reconcile(desired, {attempt("a"): local(LocalState.RUNNING)}, session="s", draining=True)
    reason = "the executor is shutting down"
    assert instructions == [
        Stop(attempt=attempt("a"), cause=StopCause.SHUTDOWN, reason=reason),
        Decline(attempt=attempt("b"), gpu="1", cause=StopCause.SHUTDOWN, reason=reason),
    ]


def test_an_attempt_is_forgotten_when_it_has_ended_is_reported_and_is_not_wanted() -> None:
    reported = {attempt(): local(LocalState.ENDED, reported=True)}
    assert reconcile({"0": decision()}, reported, session="s") == [Forget(attempt=attempt())]
    assert reconcile({"0": decision(slot())}, reported, session="s") == []
    assert reconcile({"0": decision(withdrawn=(attempt(),))}, reported, session="s") == []
    assert reconcile({"0": None}, reported, session="s") == []
    assert reconcile({"0": decision()}, {attempt(): local(LocalState.ENDED)}, session="s") == []


def test_only_a_newer_decision_replaces_the_one_in_force() -> None:
    current = decision(term=5, generation=7)
    assert newer(None, current)
    assert newer(current, decision(term=5, generation=8))
    assert newer(current, decision(term=6, generation=0))
    assert not newer(current, decision(term=5, generation=7))
    assert not newer(current, decision(term=4, generation=99))
