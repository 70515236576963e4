"""The arithmetic of leases, and the argument for its safety: simulated clocks with offsets and bounded drift."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muxflow_decisions.lease import (
    LeaseTerms,
    Watch,
    deadline,
    fence_at,
    gone,
    held,
    margin_for,
    may_fence,
    renew_at,
    renewed,
    stop_grace_ns,
    watch,
)

SECOND = 1_000_000_000
MAX_DRIFT_PPM = 20_000
ROUNDING_NS = 8
"""Readings of the simulated clocks are whole nanoseconds."""


class Clock(msgspec.Struct, frozen=True):
    """A clock that is anywhere and runs nearly as fast as true time."""

    offset_ns: int
    drift_ppm: int

    def at(self, true_ns: int) -> int:
        return self.offset_ns + true_ns * (1_000_000 + self.drift_ppm) // 1_000_000

    def true(self, reading_ns: int) -> int:
        """First true time at which the clock shows the reading."""
        return -(-(reading_ns - self.offset_ns) * 1_000_000 // (1_000_000 + self.drift_ppm))


clocks = st.builds(Clock, st.integers(0, 2**50), st.integers(-MAX_DRIFT_PPM, MAX_DRIFT_PPM))
durations = st.integers(SECOND // 10, 300 * SECOND)
delays = st.integers(0, 20 * SECOND)


@st.composite
def safe_terms(draw: st.DrawFn) -> tuple[LeaseTerms, int]:
    """Terms with the smallest margin that `margin_for` allows, and the reaction time they are made for."""
    duration, grace, reaction = draw(durations), draw(durations), draw(st.integers(0, 5 * SECOND))
    margin = margin_for(duration, grace, drift_ppm=MAX_DRIFT_PPM, reaction_ns=reaction) + ROUNDING_NS
    return LeaseTerms(duration_ns=duration, grace_ns=grace, margin_ns=margin), reaction


@given(made=safe_terms(), executor=clocks, scheduler=clocks, sent=st.integers(0, 2**45), stored=delays, seen=delays)
def test_attempts_have_ended_before_their_node_may_be_declared_lost(
    *, made: tuple[LeaseTerms, int], executor: Clock, scheduler: Clock, sent: int, stored: int, seen: int
) -> None:
    terms, reaction = made
    stop = executor.true(deadline(terms, executor.at(sent)))
    ended = executor.true(executor.at(stop) + terms.grace_ns) + reaction
    view = renewed(watch(scheduler.at(0)), revision=1, now_ns=scheduler.at(sent + stored + seen))
    declared = scheduler.true(fence_at(terms, view))
    assert ended < declared
    assert not may_fence(terms, view, scheduler.at(ended))


@given(
    made=safe_terms(),
    executor=clocks,
    scheduler=clocks,
    server=clocks,
    sent=st.integers(0, 2**45),
    stored=delays,
    noticed=delays,
)
def test_attempts_have_ended_even_if_the_last_renewal_was_never_seen_and_expired(
    *,
    made: tuple[LeaseTerms, int],
    executor: Clock,
    scheduler: Clock,
    server: Clock,
    sent: int,
    stored: int,
    noticed: int,
) -> None:
    terms, reaction = made
    stop = executor.true(deadline(terms, executor.at(sent)))
    ended = executor.true(executor.at(stop) + terms.grace_ns) + reaction
    expired = server.true(server.at(sent + stored) + terms.duration_ns)
    view = gone(watch(scheduler.at(0)), now_ns=scheduler.at(expired + noticed))
    assert ended < scheduler.true(fence_at(terms, view))


class Renewal(msgspec.Struct, frozen=True):
    """One try to renew, and its fate in the network."""

    after_ns: int
    """After the try before it."""
    up_ns: int | None
    """Time to the server; None: it never gets there."""
    back_ns: int | None
    """Time of the answer; None: it is lost."""
    shown_ns: int | None
    """Time from the server to the scheduler's eyes; None: it is never shown."""


tries = st.builds(
    Renewal,
    st.integers(1, 20 * SECOND),
    st.none() | st.integers(0, 10 * SECOND),
    st.none() | st.integers(0, 10 * SECOND),
    st.none() | st.integers(0, 10 * SECOND),
)


class Run(msgspec.Struct):
    """What became of a series of renewals, in true time."""

    stored: list[tuple[int, int]]
    """When each revision was stored."""
    shown: list[tuple[int, int]]
    ended: int
    """When the last attempt had ended."""


def play(terms: LeaseTerms, reaction: int, executor: Clock, renewals: list[Renewal]) -> Run:
    """Let an executor renew, each time after the answer to the try before, until its lease is lost."""
    run = Run(stored=[(0, 1)], shown=[(0, 1)], ended=0)
    now, held_since = 0, executor.at(0)
    for revision, renewal in enumerate(renewals, start=2):
        now += renewal.after_ns
        if not held(terms, held_since, executor.at(now)):
            break
        if renewal.up_ns is None:
            continue
        run.stored.append((now + renewal.up_ns, revision))
        if renewal.shown_ns is not None:
            run.shown.append((now + renewal.up_ns + renewal.shown_ns, revision))
        if renewal.back_ns is None:
            break  # it does not know its own revision any more: every further try fails
        sent, now = now, now + renewal.up_ns + renewal.back_ns
        if not held(terms, held_since, executor.at(now)):
            break  # the answer came too late: attempts are being stopped
        held_since = executor.at(sent)
    stop = executor.true(deadline(terms, held_since))
    run.ended = executor.true(executor.at(stop) + terms.grace_ns) + reaction
    return run


def declare(terms: LeaseTerms, scheduler: Clock, run: Run) -> int:
    """True time at which the deletion of the entry by compare-and-swap succeeds."""
    view, events = watch(scheduler.at(0)), sorted(run.shown)
    while True:
        at = scheduler.true(fence_at(terms, view))
        if events and events[0][0] <= at:
            shown, revision = events.pop(0)
            view = renewed(view, revision=revision, now_ns=scheduler.at(shown))
            continue
        newest = max(revision for stored, revision in run.stored if stored <= at)
        if newest == view.revision:
            return at
        # The server says no: the entry has a newer revision. The node has renewed.
        view = renewed(view, revision=newest, now_ns=scheduler.at(at))


@settings(max_examples=300)
@given(safe_terms(), clocks, clocks, st.lists(tries, max_size=12))
def test_compare_and_swap_and_silence_together_never_declare_a_living_node_lost(
    made: tuple[LeaseTerms, int], executor: Clock, scheduler: Clock, renewals: list[Renewal]
) -> None:
    terms, reaction = made
    run = play(terms, reaction, executor, renewals)
    declared = declare(terms, scheduler, run)
    late = [revision for stored, revision in run.stored if stored > declared]
    if late:  # it finds its revision gone, so the executor goes on without it and without those after it
        run = play(terms, reaction, executor, renewals[: late[0] - 2])
        assert declare(terms, scheduler, run) == declared
    assert run.ended < declared


def test_a_margin_that_ignores_drift_is_too_small() -> None:
    terms = LeaseTerms(duration_ns=120 * SECOND, grace_ns=10 * SECOND, margin_ns=1)
    slow, fast = Clock(0, -MAX_DRIFT_PPM), Clock(0, MAX_DRIFT_PPM)
    ended = slow.true(deadline(terms, slow.at(0)) + terms.grace_ns)
    declared = fast.true(fence_at(terms, watch(fast.at(0))))
    assert declared < ended


def test_the_default_margin_covers_drift_of_real_clocks_and_a_slow_kill() -> None:
    terms = LeaseTerms()
    needed = margin_for(terms.duration_ns, terms.grace_ns, drift_ppm=500, reaction_ns=4 * SECOND)
    assert needed <= terms.margin_ns


def test_two_renewals_may_fail_before_the_lease_is_lost() -> None:
    terms = LeaseTerms(duration_ns=120 * SECOND)
    assert renew_at(terms, 1000) == 1000 + 40 * SECOND
    assert held(terms, 1000, 1000 + 120 * SECOND - 1)
    assert not held(terms, 1000, 1000 + 120 * SECOND)
    assert not held(terms, None, 0)


def test_a_job_cannot_ask_for_more_grace_than_the_lease_gives() -> None:
    terms = LeaseTerms(grace_ns=10 * SECOND)
    assert stop_grace_ns(terms, 3600.0) == 10 * SECOND
    assert stop_grace_ns(terms, 0.5) == SECOND // 2


def test_an_old_or_repeated_sight_of_the_entry_is_no_renewal() -> None:
    view = renewed(watch(10), revision=5, now_ns=20)
    assert renewed(view, revision=5, now_ns=99) is view
    assert renewed(view, revision=4, now_ns=99) is view
    assert renewed(view, revision=6, now_ns=99) == Watch(since_ns=99, revision=6)


def test_a_new_scheduler_counts_from_its_own_start() -> None:
    terms = LeaseTerms()
    assert fence_at(terms, watch(1_000)) == 1_000 + terms.silence_ns


@pytest.mark.parametrize(("gone_after_s", "wait_s"), [(10, 135), (120, 135), (400, 415)])
def test_an_entry_that_went_by_itself_is_waited_for_by_grace_and_margin(gone_after_s: int, wait_s: int) -> None:
    terms = LeaseTerms(duration_ns=120 * SECOND, grace_ns=10 * SECOND, margin_ns=5 * SECOND)
    view = gone(renewed(watch(0), revision=1, now_ns=0), now_ns=gone_after_s * SECOND)
    assert fence_at(terms, view) == wait_s * SECOND
    assert gone(view, now_ns=999 * SECOND) is view
