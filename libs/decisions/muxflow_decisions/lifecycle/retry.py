"""When a job whose attempt failed or was lost may be tried again."""

from __future__ import annotations

import zlib
from typing import Annotated

import msgspec
from msgspec import Meta

from muxflow.contracts import JobRecord


class RetryPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of the back-off."""

    first_ns: Annotated[int, Meta(ge=0)] = 1_000_000_000
    """Wait after the first failure; it doubles with each further one."""
    longest_ns: Annotated[int, Meta(ge=0)] = 300_000_000_000
    jitter: Annotated[float, Meta(ge=0, le=1)] = 0.1
    """Share of the wait, at most, by which a job's wait is shortened so that jobs that failed together do not
    come back together."""
    max_losses: Annotated[int, Meta(ge=0)] = 10
    """Exits that nobody saw, before the job is given up."""


def delay_ns(record: JobRecord, times: int, policy: RetryPolicy) -> int:
    """Time to wait after something went wrong for the n-th time; the same for the same record."""
    doublings = min(max(times - 1, 0), 62)
    whole = min(policy.first_ns << doublings, policy.longest_ns)
    share = zlib.crc32(f"{record.tenant}/{record.job}#{record.attempt}".encode()) / 2**32
    return whole - int(whole * policy.jitter * share)


def holds_back(*, since_ns: int, until_ns: int, now_ns: int) -> bool:
    """Whether a back-off that began at `since_ns` still holds. It does not if the clock was set back before that."""
    return since_ns <= now_ns < until_ns
