"""How jobs wait that nobody has measured."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muxflow.contracts import OfflineProfile
from muxflow_decisions.lifecycle import Plan, Spots, Turn, plan, verdict

SECOND = 1_000_000_000
PATIENCE = 30 * SECOND
SINCE = 1_000 * SECOND
QUIET = Spots(fitting=3, watched=2, quiet=1)

counts = st.integers(0, 4)
spots = st.builds(
    lambda quiet, served, unwatched: Spots(fitting=quiet + served + unwatched, watched=quiet + served, quiet=quiet),
    counts,
    counts,
    counts,
)
times = st.integers(0, 2_000 * SECOND)


def waits(found: Spots = QUIET, *, behind: bool = False, after_s: float = 0.0) -> Plan:
    return plan(found, behind=behind, since_ns=SINCE, now_ns=SINCE + int(after_s * SECOND), patience_ns=PATIENCE)


def test_a_job_without_a_profile_waits_for_a_gpu_of_its_own() -> None:
    assert waits() == Plan(turn=Turn.ALONE, until_ns=SINCE + PATIENCE)


def test_of_jobs_with_one_key_one_is_measured_and_the_others_wait_for_its_profile() -> None:
    assert waits(behind=True) == Plan(turn=Turn.AFTER, until_ns=SINCE + PATIENCE)


@pytest.mark.parametrize(
    ("found", "behind", "after_s", "why"),
    [
        (Spots(fitting=2, watched=0, quiet=0), False, 0.0, "no GPU that fits is watched by a monitor"),
        (Spots(fitting=2, watched=1, quiet=0), True, 0.0, "every GPU that fits serves an online workload"),
        (QUIET, False, 30.0, "no GPU without an online workload was free within 30 s"),
        (QUIET, True, 30.0, "another job of its profile key was still to be measured after 30 s"),
    ],
)
def test_a_job_that_cannot_be_measured_or_has_waited_for_it_runs_anywhere(
    found: Spots, behind: bool, after_s: float, why: str
) -> None:
    found_plan = waits(found, behind=behind, after_s=after_s)
    assert found_plan.turn is Turn.ANYWHERE
    assert why in found_plan.why


def test_while_no_gpu_fits_nothing_is_given_up() -> None:
    assert waits(Spots(fitting=0, watched=0, quiet=0)).turn is Turn.ALONE


@given(spots, st.booleans(), times, times, st.integers(0, 100 * SECOND))
def test_nobody_waits_for_a_measurement_longer_than_the_patience_whatever_the_clock_does(
    found: Spots, behind: bool, since_ns: int, now_ns: int, patience_ns: int
) -> None:
    how = plan(found, behind=behind, since_ns=since_ns, now_ns=now_ns, patience_ns=patience_ns)
    assert (how.turn is Turn.ANYWHERE) == bool(how.why) == (how.until_ns == 0)
    if how.turn is not Turn.ANYWHERE:
        assert now_ns < how.until_ns <= now_ns + patience_ns
        late = plan(found, behind=behind, since_ns=since_ns, now_ns=how.until_ns, patience_ns=patience_ns)
        assert late.turn is Turn.ANYWHERE


CONFIDENT = OfflineProfile(key="t/a", gpu_kind="A100", confident=True)
FAILED = OfflineProfile(key="t/a", gpu_kind="T4", failure="it ended after 0.3 s")
UNDER_WAY = OfflineProfile(key="t/a", gpu_kind="H200", samples=3)


@pytest.mark.parametrize(
    ("profiles", "kinds", "found"),
    [
        ([FAILED, CONFIDENT], (), CONFIDENT),
        ([FAILED, CONFIDENT], ("T4",), FAILED),
        ([FAILED, CONFIDENT], ("H200",), None),
        ([UNDER_WAY], (), None),
        ([], (), None),
    ],
)
def test_a_confident_profile_of_a_kind_that_will_do_counts_and_else_a_failure(
    profiles: list[OfflineProfile], kinds: tuple[str, ...], found: OfflineProfile | None
) -> None:
    assert verdict(profiles, kinds) is found
