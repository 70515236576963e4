"""The events that tell users what became of a job.

Their ids are derived from the job and its submission. Publishing one again after a crash is the same message again.
"""

from __future__ import annotations

import hashlib

from muxflow.contracts import (
    JobAccepted,
    JobCancelled,
    JobFailed,
    JobFinished,
    JobRecord,
    JobRejected,
    JobState,
    encode_token,
)

_LONGEST_TOKEN = 128


def accepted_event(record: JobRecord, *, submission_id: str | None = None) -> JobAccepted:
    """Tell that the job is recorded; `submission_id` names a later, identical submission that is answered."""
    answered = submission_id or record.submission_id
    return JobAccepted(
        id=event_id(record.tenant, record.job, answered, "accepted"),
        time_ns=record.submitted_ns,
        tenant=record.tenant,
        job=record.job,
        submission_id=answered,
    )


def rejected_event(
    tenant: str, job: str, submission_id: str, *, field: str | None, reason: str, now_ns: int
) -> JobRejected:
    """Tell that a submission changed nothing, and why."""
    return JobRejected(
        id=event_id(tenant, job, submission_id, "rejected"),
        time_ns=now_ns,
        tenant=tenant,
        job=job,
        submission_id=submission_id,
        reason=reason,
        field=field,
    )


def terminal_event(record: JobRecord) -> JobFinished | JobFailed | JobCancelled | None:
    """Rebuild the one terminal event of a job, equal each time; None while the job has not ended."""
    ident = event_id(record.tenant, record.job, record.submission_id, "terminal")
    if record.state is JobState.FINISHED and record.last_placement is not None:
        return JobFinished(
            id=ident,
            time_ns=record.changed_ns,
            tenant=record.tenant,
            job=record.job,
            attempt=record.attempt,
            node=record.last_placement.node,
            gpu=record.last_placement.gpu,
        )
    if record.state is JobState.FAILED:
        return JobFailed(
            id=ident,
            time_ns=record.changed_ns,
            tenant=record.tenant,
            job=record.job,
            attempt=record.attempt,
            reason=record.reason,
            exit=record.last_exit,
        )
    if record.state is JobState.CANCELLED:
        return JobCancelled(
            id=ident,
            time_ns=record.changed_ns,
            tenant=record.tenant,
            job=record.job,
            attempt=record.attempt,
            reason=record.reason,
        )
    return None


def event_id(tenant: str, job: str, submission_id: str, what: str) -> str:
    """Derive an id that fits in a message header, whatever characters users put into names and ids."""
    return ".".join((_token(tenant), _token(job), _token(submission_id), what))


def _token(name: str) -> str:
    token = encode_token(name)
    if len(token) <= _LONGEST_TOKEN:
        return token
    return hashlib.blake2b(name.encode(), digest_size=16).hexdigest()
