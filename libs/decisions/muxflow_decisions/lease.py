"""Arithmetic of a node's lease: when to renew it, when it is lost, when the node may be declared lost.

All times are readings of one process's own monotonic clock, in nanoseconds; readings of different processes are never
compared. With s the moment the executor sent its last successful renewal and w ≥ s the moment the scheduler saw it:

    the executor's attempts have ended by  s + duration + grace          (executor's clock)
    the scheduler declares nothing before  w + duration + grace + margin (scheduler's clock)

So nothing lives when a node is declared lost, as long as `margin` covers how far the two clocks can drift apart while
they count, and how late a stop or a kill may take effect: see `margin_for`. That the renewal which the scheduler saw
is the last one is not assumed here: the deletion of the lease entry by compare-and-swap settles it.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

PositiveNs = Annotated[int, Meta(gt=0, le=2**62)]


class LeaseTerms(msgspec.Struct, frozen=True, kw_only=True):
    """The three durations that executor and scheduler must agree on."""

    duration_ns: PositiveNs = 120_000_000_000
    """T: an executor that has not renewed for this long stops its attempts."""
    grace_ns: PositiveNs = 10_000_000_000
    """Longest time between SIGTERM and SIGKILL then, whatever a job's own grace is."""
    margin_ns: PositiveNs = 5_000_000_000
    """What the scheduler waits on top, for drifting clocks and late kills."""

    @property
    def silence_ns(self) -> int:
        """How long a node must have been silent before it may be declared lost."""
        return self.duration_ns + self.grace_ns + self.margin_ns


def margin_for(duration_ns: int, grace_ns: int, *, drift_ppm: int, reaction_ns: int) -> int:
    """Smallest safe margin, if each clock runs at most `drift_ppm` (below 500,000) fast or slow, and attempts have
    ended at most `reaction_ns` after their grace.
    """
    slow, fast = 1_000_000 - drift_ppm, 1_000_000 + drift_ppm
    # The executor may count slowly and the scheduler fast; the reaction is in true time.
    counted = -(-(duration_ns + grace_ns) * fast // slow)
    reacted = -(-reaction_ns * fast // 1_000_000)
    return counted + reacted - duration_ns - grace_ns


def renew_at(terms: LeaseTerms, sent_ns: int) -> int:
    """When to send the next renewal: two may fail before the lease is lost."""
    return sent_ns + terms.duration_ns // 3


def deadline(terms: LeaseTerms, sent_ns: int) -> int:
    """When a lease is lost whose last successful renewal was **sent** at `sent_ns`: attempts are stopped then."""
    return sent_ns + terms.duration_ns


def held(terms: LeaseTerms, sent_ns: int | None, now_ns: int) -> bool:
    """Whether an executor may start and run attempts; `sent_ns` is None if it has never held a lease."""
    return sent_ns is not None and now_ns < deadline(terms, sent_ns)


def stop_grace_ns(terms: LeaseTerms, job_grace_s: float) -> int:
    """Time between SIGTERM and SIGKILL when an attempt is stopped because the lease is lost."""
    return min(terms.grace_ns, int(job_grace_s * 1_000_000_000))


class Watch(msgspec.Struct, frozen=True, kw_only=True):
    """What a scheduler knows of one node's lease, by its own clock."""

    since_ns: int
    """When it last saw the entry renewed, or began to watch if that is later."""
    revision: int | None = None
    """The entry's newest revision that it saw; None if it saw none, or only its disappearance."""
    gone_ns: int | None = None
    """When it saw that the entry had expired or was deleted; None while it is there."""


def watch(now_ns: int) -> Watch:
    """Begin to watch a node, at a scheduler's start."""
    return Watch(since_ns=now_ns)


def renewed(seen: Watch, *, revision: int, now_ns: int) -> Watch:
    """Take in that the entry was seen with this revision; an old or repeated one changes nothing."""
    if seen.revision is not None and revision <= seen.revision:
        return seen
    return Watch(since_ns=max(seen.since_ns, now_ns), revision=revision)


def gone(seen: Watch, *, now_ns: int) -> Watch:
    """Take in that there is no entry any more."""
    if seen.gone_ns is not None:
        return seen
    return msgspec.structs.replace(seen, gone_ns=now_ns)


def fence_at(terms: LeaseTerms, seen: Watch) -> int:
    """When the node may be declared lost, if nothing is seen until then.

    If the entry is there, the declaration is its deletion by compare-and-swap on `seen.revision`, and the node is lost
    only if that succeeds. If it expired by itself, a renewal that was never seen may have been the last one: the entry
    outlived it by the bucket's TTL, which is `duration_ns`, so grace and margin are counted from its disappearance.
    """
    silent = seen.since_ns + terms.silence_ns
    if seen.gone_ns is None:
        return silent
    return max(silent, seen.gone_ns + terms.grace_ns + terms.margin_ns)


def may_fence(terms: LeaseTerms, seen: Watch, now_ns: int) -> bool:
    """Whether the node may be declared lost now."""
    return now_ns >= fence_at(terms, seen)
