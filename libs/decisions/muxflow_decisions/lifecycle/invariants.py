"""What must be true of every record, whatever happened to the job."""

from __future__ import annotations

from collections.abc import Iterator

from muxflow.contracts import JobRecord, JobState, Purpose
from muxflow_decisions.lifecycle.story import STORY_LENGTH

_PLACED = frozenset({JobState.PROFILING, JobState.ASSIGNED, JobState.RUNNING, JobState.STOPPING})
_CANCELLING = frozenset({JobState.STOPPING, JobState.CANCELLED, JobState.FINISHED})


class InvalidRecord(AssertionError):  # noqa: N818 - it is a record that is invalid, and an assertion that fails
    """A record that the machine cannot have made. `broken` lists the rules it breaks."""

    def __init__(self, record: JobRecord, broken: tuple[str, ...]) -> None:
        super().__init__(
            f"{record.tenant}/{record.job} ({record.state.value}, attempt {record.attempt}): " + "; ".join(broken)
        )
        self.broken = broken


def validate(record: JobRecord) -> None:
    """Raise `InvalidRecord` if a rule is broken."""
    broken = tuple(rule for rules in (_identity, _place, _counts, _cancellation, _telling) for rule in rules(record))
    if broken:
        raise InvalidRecord(record, broken)


def _identity(record: JobRecord) -> Iterator[str]:
    if (record.spec.tenant, record.spec.name) != (record.tenant, record.job):
        yield "the specification is another job's"
    if not record.submission_id:
        yield "the submission has no id"


def _place(record: JobRecord) -> Iterator[str]:
    if (record.placement is not None) != (record.state in _PLACED):
        yield "a placement, and only then, while profiling, assigned, running or stopping"
    if record.placement is not None and record.placement != record.last_placement:
        yield "the placement is not the last one"
    if (record.attempt == 0) != (record.last_placement is None):
        yield "a last placement from the first attempt on"
    profile = record.placement is not None and record.placement.purpose is Purpose.PROFILE
    if profile != (record.state is JobState.PROFILING) and record.state is not JobState.STOPPING:
        yield "profiling means placed to be profiled"
    if record.state is JobState.PROFILING and record.profiled:
        yield "what is profiled is being profiled"
    if record.state is JobState.RUNNING and not record.started_ns:
        yield "it runs and never started"
    if record.state is JobState.ASSIGNED and record.started_ns:
        yield "it has started and is only assigned"


def _counts(record: JobRecord) -> Iterator[str]:
    over = record.attempt - (record.state in _PLACED) - (record.state is JobState.FINISHED)
    if record.failures + record.losses + record.evictions > over:
        yield "more ends than attempts"
    if record.failures > record.spec.retries and not record.state.terminal:
        yield "no retry is left and it has not ended"
    if record.state is JobState.FAILED and not record.failures + record.losses:
        yield "it failed and no attempt did"
    if record.state is JobState.FINISHED and not (record.last_exit and record.last_exit.succeeded):
        yield "it finished without success"
    if record.not_before_ns and record.state is not JobState.PENDING:
        yield "a back-off outside the queue"


def _cancellation(record: JobRecord) -> Iterator[str]:
    if record.cancel_requested and record.state not in _CANCELLING:
        yield "cancelled and neither stopping nor ended"
    if record.state is JobState.CANCELLED and not record.cancel_requested:
        yield "cancelled and nobody asked"


def _telling(record: JobRecord) -> Iterator[str]:
    if not record.reason:
        yield "no reason"
    if not 0 < len(record.story) <= STORY_LENGTH:
        yield f"a story of 1 to {STORY_LENGTH} transitions"
    elif record.story[-1].state is not record.state:
        yield "the story ends elsewhere"
