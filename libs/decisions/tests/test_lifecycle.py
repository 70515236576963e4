"""The job machine, one sentence at a time."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from muxflow.contracts import (
    ExitStatus,
    GpuError,
    GpuRequest,
    JobCancelled,
    JobFailed,
    JobFinished,
    JobRecord,
    JobRejected,
    JobSpec,
    JobState,
    Placement,
    Purpose,
    RunCheckpointed,
    RunEvicted,
    RunExited,
    RunStarted,
    StopCause,
)
from muxflow_decisions.lifecycle import (
    STORY_LENGTH,
    Announce,
    Assign,
    Cancel,
    Decide,
    InvalidRecord,
    NodeLost,
    Note,
    Outcome,
    ProfileDone,
    ProfileGivenUp,
    RetryPolicy,
    Stimulus,
    Submit,
    Wake,
    Withdraw,
    accepted_event,
    advance,
    decide,
    holds_back,
    rejected_event,
    story,
    submit,
    terminal_event,
    validate,
)
from muxflow_decisions.lifecycle.retry import delay_ns

SECOND = 1_000_000_000
NOW = 1_700_000_000 * SECOND
POLICY = RetryPolicy(jitter=0)
HERE = Placement(node="north", gpu="GPU-1", session="s1")
SPEC = JobSpec(name="train", tenant="default", command=("run",), gpu=GpuRequest(memory_bytes=8), retries=2)


def act(record: JobRecord, *stimuli: Stimulus, now_ns: int = NOW) -> Outcome:
    outcome = Outcome(record)
    for stimulus in stimuli:
        outcome = advance(outcome.record, stimulus, now_ns=now_ns, policy=POLICY)
        validate(outcome.record)
    return outcome


def pending(**changes: Any) -> JobRecord:
    record = submit(SPEC, submission_id="sub", submitted_ns=NOW, now_ns=NOW).record
    return msgspec.structs.replace(record, **changes)


def assigned() -> JobRecord:
    return act(pending(), Assign(placement=HERE)).record


def running() -> JobRecord:
    return act(assigned(), started()).record


def started(attempt: int = 1, node: str = "north") -> RunStarted:
    return RunStarted(
        node=node, gpu="GPU-1", tenant="default", job="train", attempt=attempt, pid=7, boot_id="b", time_ns=NOW
    )


def exited(attempt: int = 1, node: str = "north", **status: Any) -> RunExited:
    return RunExited(
        node=node,
        gpu="GPU-1",
        tenant="default",
        job="train",
        attempt=attempt,
        exit=ExitStatus(**status),
        started_ns=NOW,
        ended_ns=NOW,
    )


def evicted() -> RunEvicted:
    return RunEvicted(
        node="north", gpu="GPU-1", tenant="default", job="train", attempt=1, cause=StopCause.EVICTION, reason="SLO"
    )


def note(outcome: Outcome) -> str:
    (instruction,) = outcome.instructions
    assert isinstance(instruction, Note)
    return instruction.reason


def announced(outcome: Outcome) -> Any:
    (event,) = [item.event for item in outcome.instructions if isinstance(item, Announce)]
    return event


def decides(outcome: Outcome) -> bool:
    return any(
        isinstance(item, Decide) and (item.node, item.gpu) == ("north", "GPU-1") for item in outcome.instructions
    )


def test_a_submitted_job_is_pending_and_announced_as_accepted() -> None:
    outcome = submit(SPEC, submission_id="sub", submitted_ns=NOW, now_ns=NOW + 5)
    validate(outcome.record)
    assert outcome.record.state is JobState.PENDING
    assert announced(outcome) == accepted_event(outcome.record)
    assert announced(outcome).submission_id == "sub"


def test_an_identical_submission_is_answered_and_changes_nothing() -> None:
    record = running()
    outcome = act(record, Submit(spec=SPEC, submission_id="sub2"))
    assert outcome.record is record
    assert announced(outcome).submission_id == "sub2"


@pytest.mark.parametrize("state", ["running", "ended"])
def test_a_different_submission_of_the_same_name_is_rejected(state: str) -> None:
    record = running() if state == "running" else act(running(), exited(code=0)).record
    other = msgspec.structs.replace(SPEC, priority=1)
    outcome = act(record, Submit(spec=other, submission_id="sub2"))
    assert outcome.record is record
    assert isinstance(announced(outcome), JobRejected)
    assert record.state.value in announced(outcome).reason


def test_assignment_uses_the_next_attempt_number_and_changes_the_gpu() -> None:
    outcome = act(pending(), Assign(placement=HERE))
    assert (outcome.record.state, outcome.record.attempt) == (JobState.ASSIGNED, 1)
    assert outcome.record.placement == HERE
    assert decides(outcome)


def test_a_placed_job_is_not_placed_again() -> None:
    outcome = act(assigned(), Assign(placement=HERE))
    assert "assigned" in note(outcome)


def test_a_started_attempt_runs() -> None:
    record = running()
    assert (record.state, record.started_ns) == (JobState.RUNNING, NOW)
    assert note(act(record, started())) == "it is running already"


def test_exit_code_0_finishes_the_job_and_frees_the_gpu() -> None:
    outcome = act(running(), exited(code=0))
    assert outcome.record.state is JobState.FINISHED
    assert outcome.record.placement is None
    assert decides(outcome)
    event = announced(outcome)
    assert isinstance(event, JobFinished)
    assert (event.attempt, event.node, event.gpu) == (1, "north", "GPU-1")


def test_an_exit_may_come_before_its_start() -> None:
    outcome = act(assigned(), exited(code=0))
    assert outcome.record.state is JobState.FINISHED
    assert note(act(outcome.record, started())) == "the job has ended: finished"


def test_exit_code_0_of_a_job_that_was_asked_to_stop_is_no_success() -> None:
    outcome = act(running(), exited(code=0, stopped_by=StopCause.EVICTION))
    assert outcome.record.state is JobState.PENDING
    assert (outcome.record.evictions, outcome.record.failures) == (1, 0)
    assert outcome.record.not_before_ns == 0


@pytest.mark.parametrize("how", [{"signal": "SIGKILL"}, {"code": 0}, {"lost": True}])
def test_a_job_that_was_stopped_for_a_breach_has_failed_with_the_reason_whatever_retries_it_has(
    how: dict[str, Any],
) -> None:
    outcome = act(running(), exited(stopped_by=StopCause.BREACH, stop_reason="it uses 9.3 GiB", **how))
    assert outcome.record.state is JobState.FAILED
    assert (outcome.record.failures, outcome.record.evictions, outcome.record.losses) == (1, 0, 0)
    assert outcome.record.reason.endswith("it uses 9.3 GiB; it is not tried again")
    assert isinstance(announced(outcome), JobFailed)


def test_a_cancelled_job_that_broke_a_rule_is_cancelled() -> None:
    outcome = act(running(), Cancel(), exited(signal="SIGKILL", stopped_by=StopCause.BREACH, stop_reason="why"))
    assert outcome.record.state is JobState.CANCELLED


def test_a_sticky_cuda_error_stands_in_the_reason() -> None:
    error = GpuError(code=700, name="CUDA_ERROR_ILLEGAL_ADDRESS", call="cuStreamSynchronize")
    outcome = act(running(), exited(code=1, gpu_error=error))
    assert outcome.record.reason == (
        "exit code 1, after cuStreamSynchronize gave CUDA_ERROR_ILLEGAL_ADDRESS (700); it will be tried again"
    )


def test_a_failure_waits_twice_as_long_each_time_and_the_last_one_ends_the_job() -> None:
    outcome, waits = Outcome(pending()), []
    for attempt in (1, 2, 3):
        outcome = act(
            outcome.record, Assign(placement=HERE), exited(attempt, code=3), now_ns=NOW + attempt * 100 * SECOND
        )
        waits += [item.at_ns - NOW - attempt * 100 * SECOND for item in outcome.instructions if isinstance(item, Wake)]
    assert waits == [1 * SECOND, 2 * SECOND]
    assert outcome.record.state is JobState.FAILED
    event = announced(outcome)
    assert isinstance(event, JobFailed)
    assert event.exit == ExitStatus(code=3)
    assert "exit code 3" in event.reason


def test_a_program_that_cannot_start_has_failed() -> None:
    outcome = act(assigned(), exited(error="command not found: run"))
    assert outcome.record.failures == 1
    assert "command not found: run" in outcome.record.reason


def test_back_off_keeps_a_job_from_being_placed() -> None:
    record = act(assigned(), exited(code=1)).record
    assert "back-off" in note(act(record, Assign(placement=HERE)))
    assert act(record, Assign(placement=HERE), now_ns=NOW + SECOND).record.state is JobState.ASSIGNED


def test_a_clock_that_was_set_back_does_not_prolong_a_back_off() -> None:
    record = act(assigned(), exited(code=1)).record
    assert act(record, Assign(placement=HERE), now_ns=NOW - 3600 * SECOND).record.state is JobState.ASSIGNED
    assert holds_back(since_ns=10, until_ns=20, now_ns=19)
    assert not holds_back(since_ns=10, until_ns=20, now_ns=20)


def test_exits_that_nobody_saw_are_counted_apart_and_bounded() -> None:
    record = pending(losses=POLICY.max_losses - 1, attempt=POLICY.max_losses - 1, last_placement=HERE)
    n = POLICY.max_losses
    record = act(record, Assign(placement=HERE), exited(n, lost=True)).record
    assert (record.state, record.losses, record.failures) == (JobState.PENDING, n, 0)
    late = NOW + 3600 * SECOND
    record = act(record, Assign(placement=HERE), exited(n + 1, lost=True), now_ns=late).record
    assert record.state is JobState.FAILED


def test_a_lost_node_gives_the_job_back_and_is_counted_nowhere() -> None:
    outcome = act(running(), NodeLost(node="north", session="s1", reason="silent for 135 s"))
    record = outcome.record
    assert record.state is JobState.PENDING
    assert (record.failures, record.losses, record.evictions, record.not_before_ns) == (0, 0, 0, 0)
    assert record.reason == "node north was lost: silent for 135 s"
    assert decides(outcome)


@pytest.mark.parametrize(("node", "session"), [("south", "s1"), ("north", "s0")])
def test_the_end_of_another_session_or_node_is_not_ours(node: str, session: str) -> None:
    record = running()
    assert act(record, NodeLost(node=node, session=session)).record is record


def test_facts_about_a_lost_attempt_change_nothing_even_success() -> None:
    record = act(running(), NodeLost(node="north", session="s1")).record
    assert act(record, exited(code=0)).record is record
    placed = act(record, Assign(placement=msgspec.structs.replace(HERE, node="south"))).record
    assert placed.attempt == 2
    assert act(placed, exited(code=0)).record is placed


def test_a_repeated_exit_does_not_end_the_next_attempt_on_the_same_node() -> None:
    first = exited(1, signal="SIGTERM", stopped_by=StopCause.EVICTION)
    second = act(running(), first, Assign(placement=HERE)).record
    assert second.attempt == 2
    assert "attempt 1" in note(act(second, first))
    assert act(second, exited(3, code=0)).record is second


def test_a_start_that_comes_after_the_stop_does_not_make_the_job_run() -> None:
    stopping = act(assigned(), Withdraw(reason="move")).record
    assert act(stopping, started()).record is stopping


def test_cancelling_a_pending_job_ends_it_at_once() -> None:
    outcome = act(pending(), Cancel(reason="wrong data"))
    event = announced(outcome)
    assert isinstance(event, JobCancelled)
    assert event.reason == "cancelled on request: wrong data"
    assert not decides(outcome)


def test_cancelling_a_placed_job_stops_it_and_ends_with_its_exit() -> None:
    stopping = act(running(), Cancel(reason="wrong data"))
    assert stopping.record.state is JobState.STOPPING
    assert decides(stopping)
    assert not any(isinstance(item, Announce) for item in stopping.instructions)
    ended = act(stopping.record, exited(signal="SIGTERM", stopped_by=StopCause.DECISION))
    assert isinstance(announced(ended), JobCancelled)
    assert ended.record.reason == "cancelled on request: wrong data"


def test_a_job_that_finished_before_the_cancellation_reached_it_has_finished() -> None:
    assert act(running(), Cancel(), exited(code=0)).record.state is JobState.FINISHED


def test_a_cancelled_job_on_a_lost_node_is_cancelled() -> None:
    outcome = act(running(), Cancel(), NodeLost(node="north", session="s1"))
    assert isinstance(announced(outcome), JobCancelled)


def test_cancelling_what_has_ended_or_is_being_cancelled_changes_nothing() -> None:
    stopping = act(running(), Cancel()).record
    assert act(stopping, Cancel()).record is stopping
    ended = act(running(), exited(code=0)).record
    assert "finished" in note(act(ended, Cancel()))


def test_a_withdrawn_job_that_is_then_cancelled_does_not_go_back_to_the_queue() -> None:
    record = act(running(), Withdraw(reason="move"), Cancel(), exited(signal="SIGTERM", stopped_by=StopCause.DECISION))
    assert record.record.state is JobState.CANCELLED


def test_withdrawing_concerns_only_the_attempt_that_is_meant() -> None:
    record = running()
    assert act(record, Withdraw(reason="x", attempt=2)).record is record
    assert act(record, Withdraw(reason="x", attempt=1)).record.state is JobState.STOPPING
    assert "pending" in note(act(pending(), Withdraw(reason="x")))


def test_an_eviction_by_the_node_leaves_the_desired_state_too() -> None:
    outcome = act(running(), evicted())
    assert outcome.record.state is JobState.STOPPING
    assert decides(outcome)
    assert "SLO" in outcome.record.reason
    assert act(outcome.record, evicted()).record is outcome.record


def test_an_exit_from_a_node_where_the_attempt_is_not_placed_is_ignored() -> None:
    record = running()
    assert "south" in note(act(record, exited(node="south", code=0)))


def test_a_repeated_checkpoint_counts_once() -> None:
    saved = RunCheckpointed(node="north", gpu="GPU-1", tenant="default", job="train", attempt=1, time_ns=NOW)
    record = act(running(), saved, saved).record
    assert (record.checkpoints, record.checkpointed_ns) == (1, NOW)


def test_a_profile_attempt_is_stopped_when_the_profile_is_known_and_the_job_queued_again() -> None:
    profile = msgspec.structs.replace(HERE, purpose=Purpose.PROFILE)
    measured = act(pending(), Assign(placement=profile), started()).record
    assert measured.state is JobState.PROFILING
    stopping = act(measured, ProfileDone())
    assert stopping.record.state is JobState.STOPPING
    assert decides(stopping)
    back = act(stopping.record, exited(signal="SIGTERM", stopped_by=StopCause.DECISION)).record
    assert (back.state, back.profiled) == (JobState.PENDING, True)


@pytest.mark.parametrize("known", [ProfileDone(goes_on=True), ProfileGivenUp(reason="never steady", goes_on=True)])
def test_a_profile_attempt_that_nobody_wants_out_of_the_way_goes_on_and_runs(known: Stimulus) -> None:
    profile = msgspec.structs.replace(HERE, purpose=Purpose.PROFILE, sm_share_pct=100)
    measured = act(pending(), Assign(placement=profile), started()).record
    outcome = act(measured, known)
    record = outcome.record
    assert (record.state, record.attempt, record.profiled) == (JobState.RUNNING, 1, True)
    assert record.started_ns == measured.started_ns
    assert record.placement == msgspec.structs.replace(profile, purpose=Purpose.RUN)
    assert decides(outcome)
    assert act(record, exited(code=0)).record.state is JobState.FINISHED


def test_a_profile_that_is_known_before_its_attempt_has_started_leaves_it_assigned() -> None:
    profile = msgspec.structs.replace(HERE, purpose=Purpose.PROFILE)
    record = act(pending(), Assign(placement=profile), ProfileDone(goes_on=True)).record
    assert record.state is JobState.ASSIGNED
    assert act(record, started()).record.state is JobState.RUNNING


def test_what_was_profiled_is_not_placed_to_be_profiled_again() -> None:
    profile = msgspec.structs.replace(HERE, purpose=Purpose.PROFILE)
    record = act(pending(), ProfileDone()).record
    assert "profiled before" in note(act(record, Assign(placement=profile)))


def test_a_profile_attempt_that_ends_by_itself_has_done_the_job() -> None:
    profile = msgspec.structs.replace(HERE, purpose=Purpose.PROFILE)
    assert act(pending(), Assign(placement=profile), exited(code=0)).record.state is JobState.FINISHED


def test_giving_up_a_profile_of_a_waiting_job_lets_it_wait_on() -> None:
    record = act(pending(), ProfileGivenUp(reason="no idle GPU for an hour")).record
    assert (record.state, record.profiled) == (JobState.PENDING, True)
    assert "no idle GPU" in record.reason


def test_the_terminal_event_can_be_rebuilt_equal_and_has_one_id_whatever_it_is() -> None:
    finished = act(running(), exited(code=0))
    assert announced(finished) == terminal_event(finished.record)
    cancelled = act(pending(), Cancel())
    assert announced(cancelled).id == announced(finished).id
    assert terminal_event(pending()) is None


@given(st.text(min_size=1), st.text(min_size=1), st.text(min_size=1))
def test_ids_of_events_fit_into_a_header_whatever_names_users_invent(tenant: str, job: str, submission: str) -> None:
    ident = rejected_event(tenant, job, submission, field=None, reason="x", now_ns=1).id
    assert ident.isascii()
    assert ident.isprintable()
    assert " " not in ident
    assert len(ident) < 500


def test_the_story_keeps_the_last_transitions_and_reads_as_lines() -> None:
    record = pending()
    for n in range(1, 41):
        record = act(
            record,
            Assign(placement=HERE),
            exited(n, signal="SIGTERM", stopped_by=StopCause.EVICTION),
        ).record
    lines = story(record)
    assert len(lines) == STORY_LENGTH
    assert lines[-1] == (
        "2023-11-14 22:13:20.000Z  pending    run-exited: back in the queue: killed by SIGTERM, stopped by eviction"
    )


def test_desired_state_holds_what_shall_run_and_what_is_awaited() -> None:
    stays = running()
    goes = act(running(), Cancel()).record
    elsewhere = act(pending(), Assign(placement=msgspec.structs.replace(HERE, session="s0"))).record
    decision = decide(
        [stays, goes, elsewhere, pending()], node="north", gpu="GPU-1", session="s1", term=3, generation=4, cause="test"
    )
    assert [slot.key.job for slot in decision.slots] == ["train"]
    assert decision.slots[0].memory_quota_bytes == 8
    assert [str(attempt) for attempt in decision.withdrawn] == ["default/train#1"]
    assert (decision.version, decision.session) == ((3, 4), "s1")


@given(st.integers(1, 10_000), st.integers(0, 10_000))
def test_back_off_is_bounded_grows_and_is_the_same_each_time(times: int, attempt: int) -> None:
    policy, record = RetryPolicy(), pending(attempt=attempt)
    wait = delay_ns(record, times, policy)
    assert policy.first_ns * (1 - policy.jitter) <= wait <= policy.longest_ns
    assert wait == delay_ns(record, times, policy)
    assert delay_ns(record, times + 2, policy) >= wait


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"placement": HERE}, "a placement, and only then"),
        ({"state": JobState.RUNNING}, "a placement, and only then"),
        ({"state": JobState.FINISHED}, "it finished without success"),
        ({"failures": 1}, "more ends than attempts"),
        ({"cancel_requested": True}, "cancelled and neither stopping nor ended"),
        ({"state": JobState.CANCELLED}, "cancelled and nobody asked"),
        ({"reason": ""}, "no reason"),
        ({"job": "other"}, "another job's"),
        ({"story": ()}, "a story of"),
        ({"attempt": 1}, "a last placement from the first attempt on"),
        ({"submission_id": ""}, "the submission has no id"),
    ],
)
def test_validation_names_the_broken_rule(change: dict[str, Any], rule: str) -> None:
    with pytest.raises(InvalidRecord, match=rule):
        validate(pending(**change))
