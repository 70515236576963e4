"""How one attempt is stopped."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muxflow.contracts import StopCause
from muxflow_decisions.device import FROZEN, Gate, GateState, JobPhase
from muxflow_decisions.eviction.ladder import (
    AskCheckpoint,
    Begin,
    Checkpointed,
    Clock,
    Disconnected,
    Drained,
    Exited,
    Kill,
    LadderInstruction,
    LadderOutcome,
    LadderPolicy,
    LadderStimulus,
    NotAsked,
    SetJobGate,
    Step,
    Stop,
    Tell,
    Terminate,
    TerminateClient,
    advance,
    longest_s,
    story,
    validate,
)

SECOND = 1_000_000_000
START = 700 * SECOND
POLICY = LadderPolicy(lease_grace_s=5, hard_grace_s=1, disconnect_s=2)
TRICKLE = Gate(state=GateState.TRICKLE, budget_permille=50, window_us=500)
SAVING: dict[str, Any] = {
    "has_checkpoint": True,
    "handles_signal": True,
    "checkpoint_grace_s": 30.0,
    "stop_grace_s": 10.0,
}


class Attempt:
    """An attempt that is being stopped, and what its executor was told to do."""

    def __init__(self) -> None:
        self.stop = Stop()
        self.now_ns = START
        self.done: list[LadderInstruction] = []

    def give(self, stimulus: LadderStimulus, *, after_s: float = 0.0) -> LadderOutcome:
        self.now_ns += int(after_s * SECOND)
        outcome = advance(self.stop, stimulus, now_ns=self.now_ns, policy=POLICY)
        self.stop = outcome.stop
        validate(self.stop)
        self.done += outcome.instructions
        return outcome

    def at_deadline(self) -> LadderOutcome:
        assert self.stop.deadline_ns is not None
        return self.give(Clock(), after_s=(self.stop.deadline_ns - self.now_ns) / SECOND)

    @property
    def steps(self) -> list[str]:
        return [item.step.value for item in self.done if isinstance(item, Tell)]


def begun(cause: StopCause = StopCause.EVICTION, **facts: Any) -> Attempt:
    attempt = Attempt()
    attempt.give(Begin(cause=cause, **({"stop_grace_s": 10.0} | facts)))
    return attempt


def gates(outcome: LadderOutcome) -> list[SetJobGate]:
    return [item for item in outcome.instructions if isinstance(item, SetJobGate)]


def test_a_job_that_can_save_its_state_is_frozen_then_trickles_and_is_asked() -> None:
    outcome = Attempt().give(Begin(cause=StopCause.EVICTION, **SAVING))
    deadline_ns = START + 30 * SECOND
    assert outcome.instructions == (
        SetJobGate(gate=FROZEN, phase=JobPhase.RUN, deadline_ns=None),
        Tell(step=Step.FREEZE, detail="eviction"),
        Tell(step=Step.CHECKPOINT, detail="asked to save"),
        SetJobGate(gate=TRICKLE, phase=JobPhase.CHECKPOINT, deadline_ns=deadline_ns),
        AskCheckpoint(),
    )


@pytest.mark.parametrize("cause", [StopCause.DECISION, StopCause.EVICTION, StopCause.SHUTDOWN])
def test_every_cause_but_a_lost_lease_leaves_time_to_save(cause: StopCause) -> None:
    assert begun(cause, **SAVING).stop.step is Step.CHECKPOINT
    assert begun(StopCause.LEASE, **SAVING).stop.step is Step.TERMINATE


@pytest.mark.parametrize("lacking", [{"has_checkpoint": False}, {"handles_signal": False}, {"hard": True}])
def test_a_job_that_cannot_save_or_has_no_time_is_terminated_at_once(lacking: dict[str, bool]) -> None:
    attempt = begun(**(SAVING | lacking))
    assert attempt.steps == ["freeze", "terminate"]
    assert isinstance(attempt.done[-1], Terminate)


@pytest.mark.parametrize("answer", [Checkpointed(), NotAsked()])
def test_it_is_terminated_as_soon_as_it_has_saved_or_cannot(answer: LadderStimulus) -> None:
    attempt = begun(**SAVING)
    outcome = attempt.give(answer, after_s=1)
    assert gates(outcome) == [
        SetJobGate(gate=TRICKLE, phase=JobPhase.STOP, deadline_ns=START + 11 * SECOND),
    ]
    assert outcome.instructions[-1] == Terminate()


def test_a_job_that_does_not_save_in_time_is_terminated() -> None:
    attempt = begun(**SAVING)
    attempt.give(Clock(), after_s=29.9)
    assert attempt.steps[-1] == "checkpoint"
    attempt.give(Clock(), after_s=0.1)
    assert attempt.steps[-1] == "terminate"


def test_a_job_that_broke_a_rule_is_disconnected_before_any_signal_and_killed_as_soon_as_it_is() -> None:
    attempt = begun(StopCause.BREACH, **SAVING)
    assert attempt.steps == ["freeze", "disconnect"]
    assert attempt.done[-1] == TerminateClient()
    assert {item.gate.state for item in attempt.done if isinstance(item, SetJobGate)} == {GateState.FROZEN}
    assert attempt.give(Disconnected(), after_s=0.01).instructions[-1] == Kill()


@pytest.mark.parametrize("facts", [SAVING, {}])
def test_a_job_that_breaks_a_rule_while_it_stops_is_disconnected_at_once(facts: dict[str, Any]) -> None:
    attempt = begun(**facts)
    attempt.give(Begin(cause=StopCause.BREACH), after_s=1)
    assert attempt.stop.step is Step.DISCONNECT
    assert attempt.stop.kill_ns == START + 3 * SECOND


def test_nothing_trickles_in_a_hard_stop() -> None:
    attempt = begun(hard=True, **{key: value for key, value in SAVING.items() if key != "stop_grace_s"})
    assert {item.gate.state for item in attempt.done if isinstance(item, SetJobGate)} == {GateState.FROZEN}
    assert attempt.done[-2] == SetJobGate(gate=FROZEN, phase=JobPhase.STOP_HARD, deadline_ns=START + SECOND)


def test_after_the_jobs_grace_mps_is_asked_before_anything_is_killed() -> None:
    attempt = begun()
    assert attempt.at_deadline().instructions == (
        Tell(step=Step.DISCONNECT, detail="its time is over"),
        SetJobGate(gate=FROZEN, phase=JobPhase.STOP_HARD, deadline_ns=START + 12 * SECOND),
        TerminateClient(),
    )
    assert attempt.at_deadline().instructions == (Tell(step=Step.KILL, detail="its time is over"), Kill())
    assert attempt.now_ns == START + 12 * SECOND


def test_it_is_killed_as_soon_as_mps_has_disconnected_it() -> None:
    attempt = begun()
    attempt.at_deadline()
    outcome = attempt.give(Disconnected(), after_s=0.01)
    assert outcome.instructions == (Tell(step=Step.KILL, detail="disconnected from MPS"), Kill())


def test_a_kill_is_repeated_until_nothing_is_left() -> None:
    attempt = begun()
    for _ in range(5):
        attempt.at_deadline()
    assert (attempt.stop.kills, attempt.steps.count("kill")) == (4, 1)
    assert attempt.give(Exited()).instructions == (Tell(step=Step.ENDED, detail="after kill"),)
    assert attempt.stop.deadline_ns is None


def test_a_drained_job_launches_no_more_and_keeps_its_time_to_clean_up() -> None:
    attempt = begun()
    outcome = attempt.give(Drained(), after_s=0.5)
    deadline_ns = START + 10 * SECOND
    assert outcome.instructions == (
        Tell(step=Step.DRAINED),
        SetJobGate(gate=FROZEN, phase=JobPhase.STOP, deadline_ns=deadline_ns),
    )
    assert attempt.stop.deadline_ns == deadline_ns
    assert attempt.give(Drained()).instructions == ()


def test_a_job_that_only_says_that_it_is_drained_is_not_killed_before_mps_has_answered() -> None:
    attempt = begun()
    attempt.at_deadline()
    attempt.give(Drained())
    assert attempt.stop.step is Step.DISCONNECT


def test_a_harder_order_joins_in_and_takes_the_time_to_save_away() -> None:
    attempt = begun(**SAVING)
    outcome = attempt.give(Begin(cause=StopCause.EVICTION, hard=True, **SAVING), after_s=1)
    assert gates(outcome)[-1] == SetJobGate(gate=FROZEN, phase=JobPhase.STOP_HARD, deadline_ns=START + 2 * SECOND)
    assert outcome.instructions[-1] == Terminate()
    assert attempt.stop.cause is StopCause.EVICTION


def test_a_lost_lease_shortens_a_stop_that_is_under_way() -> None:
    attempt = begun(stop_grace_s=100.0)
    outcome = attempt.give(Begin(cause=StopCause.LEASE, stop_grace_s=100.0), after_s=1)
    assert outcome.instructions == (SetJobGate(gate=TRICKLE, phase=JobPhase.STOP, deadline_ns=START + 4 * SECOND),)
    assert attempt.stop.kill_ns == START + 6 * SECOND


def test_the_same_order_once_more_changes_nothing() -> None:
    for facts in (SAVING, {}):
        attempt = begun(**facts)
        before = attempt.stop
        outcome = attempt.give(Begin(cause=StopCause.EVICTION, **({"stop_grace_s": 10.0} | facts)), after_s=3)
        assert (outcome.stop, outcome.instructions) == (before, ())


def test_a_job_without_any_grace_still_leaves_mps_its_time() -> None:
    attempt = begun(stop_grace_s=0.0)
    assert attempt.steps == ["freeze", "terminate", "disconnect"]
    attempt.at_deadline()
    assert attempt.now_ns == START + 2 * SECOND


def test_after_a_clock_that_came_late_mps_still_has_its_time_unless_the_lease_is_lost() -> None:
    attempt = begun()
    attempt.give(Clock(), after_s=60)
    assert attempt.stop.step is Step.DISCONNECT
    attempt = begun(StopCause.LEASE)
    attempt.give(Clock(), after_s=60)
    assert attempt.steps == ["freeze", "terminate", "disconnect", "kill"]


def test_what_is_never_begun_or_has_ended_is_left_alone() -> None:
    attempt = Attempt()
    everything: tuple[LadderStimulus, ...] = (Checkpointed(), NotAsked(), Drained(), Disconnected(), Exited(), Clock())
    for stimulus in everything:
        assert attempt.give(stimulus).instructions == ()
    attempt = begun()
    attempt.give(Exited())
    for stimulus in (Begin(cause=StopCause.LEASE), *everything):
        assert attempt.give(stimulus, after_s=100).instructions == ()


def test_the_story_tells_the_steps_and_their_times() -> None:
    attempt = begun(**SAVING)
    attempt.give(Checkpointed(), after_s=1.25)
    attempt.give(Exited(), after_s=0.5)
    assert story(attempt.stop) == [
        "+0.000 s  freeze      eviction",
        "+0.000 s  checkpoint  asked to save",
        "+1.250 s  terminate   saved",
        "+1.750 s  ended       after terminate",
    ]


def test_a_stop_that_cannot_be_is_named_as_such() -> None:
    stop = msgspec.structs.replace(begun().stop, kills=1)
    with pytest.raises(AssertionError, match="killed before MPS was asked"):
        validate(stop)


seconds = st.floats(0, 500)
begins = st.builds(
    Begin,
    cause=st.sampled_from(StopCause),
    hard=st.booleans(),
    has_checkpoint=st.booleans(),
    handles_signal=st.booleans(),
    checkpoint_grace_s=seconds,
    stop_grace_s=seconds,
)
answers = st.sampled_from([Checkpointed(), NotAsked(), Drained(), Disconnected(), Exited(), Clock()])


@given(st.lists(st.tuples(st.floats(0, 60), begins | answers), max_size=20))
def test_in_any_order_of_events_nothing_is_killed_before_mps_was_asked_and_no_gate_opens(
    scenario: list[tuple[float, LadderStimulus]],
) -> None:
    attempt = Attempt()
    hard = False
    for pause_s, stimulus in scenario:
        outcome = attempt.give(stimulus, after_s=pause_s)
        hard = hard or attempt.stop.hard
        for item in gates(outcome):
            assert item.gate.state is not GateState.OPEN
            assert item.gate.budget_permille <= 50
            assert not hard or item.gate == FROZEN
    kinds = [type(item) for item in attempt.done]
    for once in (AskCheckpoint, Terminate, TerminateClient):
        assert kinds.count(once) <= 1
    if Kill in kinds:
        assert kinds.index(TerminateClient) < kinds.index(Kill)
    if Terminate in kinds and TerminateClient in kinds:
        assert kinds.index(Terminate) < kinds.index(TerminateClient)
    if Terminate in kinds and AskCheckpoint in kinds:
        assert kinds.index(AskCheckpoint) < kinds.index(Terminate)


@given(begins, st.lists(st.tuples(st.floats(0, 10), begins | st.sampled_from([Checkpointed(), Drained()])), max_size=6))
@settings(max_examples=200)
def test_with_a_punctual_clock_every_stop_ends_in_its_time_and_joining_only_shortens_it(
    begin: Begin, joining: list[tuple[float, LadderStimulus]]
) -> None:
    attempt = Attempt()
    attempt.give(begin)
    end_ns = attempt.stop.kill_ns
    assert end_ns <= START + longest_s(begin, POLICY) * SECOND + 3
    assert longest_s(begin, POLICY) <= POLICY.checkpoint_longest_s + POLICY.stop_longest_s + POLICY.disconnect_s
    if begin.cause is StopCause.LEASE:
        assert longest_s(begin, POLICY) <= POLICY.lease_grace_s
    for pause_s, stimulus in joining:
        until_ns = attempt.now_ns + int(pause_s * SECOND)
        while attempt.stop.kills == 0 and attempt.stop.deadline_ns is not None and attempt.stop.deadline_ns <= until_ns:
            attempt.at_deadline()
        if attempt.stop.kills:
            break
        attempt.now_ns = until_ns
        attempt.give(stimulus)
        assert attempt.stop.kill_ns <= end_ns + 3
        end_ns = attempt.stop.kill_ns
    while attempt.stop.kills == 0:
        attempt.at_deadline()
    assert attempt.now_ns <= end_ns + 3
