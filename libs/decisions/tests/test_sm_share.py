"""The share of the SMs for the next start."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muxflow.contracts import OnlineProfile
from muxflow_decisions.device.sm_share import SmSharePolicy, expected_peak_pct, sm_share_pct, sms

POLICY = SmSharePolicy()
counts = st.integers(10, 200)
peaks = st.none() | st.floats(0, 100)


@pytest.mark.parametrize(
    ("peak", "sm_count", "share"),
    [
        (30.0, None, 60),
        (30.0, 40, 60),  # 24 of a T4's 40 SMs
        (31.0, 40, 58),  # 23 SMs: 59 % would be no more
        (30.0, 108, 60),
        (0.0, None, 90),
        (100.0, None, 10),
        (None, None, 30),
    ],
)
def test_the_share_is_what_the_forecast_peak_and_the_headroom_leave(
    peak: float | None, sm_count: int | None, share: int
) -> None:
    assert sm_share_pct(forecast_peak_pct=peak, sm_count=sm_count, policy=POLICY) == share


@given(peaks, counts)
def test_the_share_is_within_its_bounds_and_no_smaller_figure_means_as_many_sms(
    peak: float | None, sm_count: int
) -> None:
    share = sm_share_pct(forecast_peak_pct=peak, sm_count=sm_count, policy=POLICY)
    assert POLICY.lowest_pct <= share <= POLICY.highest_pct
    plain = sm_share_pct(forecast_peak_pct=peak, sm_count=None, policy=POLICY)
    assert sms(share, sm_count) == sms(plain, sm_count)
    assert share == POLICY.lowest_pct or sms(share - 1, sm_count) < sms(share, sm_count)


@given(st.floats(0, 100), st.floats(0, 100), counts)
def test_a_higher_peak_never_gives_a_larger_share(one: float, other: float, sm_count: int) -> None:
    low, high = sorted((one, other))
    assert sm_share_pct(forecast_peak_pct=high, sm_count=sm_count, policy=POLICY) <= sm_share_pct(
        forecast_peak_pct=low, sm_count=sm_count, policy=POLICY
    )


def test_bounds_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="lowest_pct"):
        SmSharePolicy(lowest_pct=95)


@given(peaks, counts, st.integers(1, 100))
def test_a_fixed_share_is_given_whatever_the_online_side_does(peak: float | None, sm_count: int, fixed: int) -> None:
    policy = SmSharePolicy(fixed_pct=fixed)
    assert sm_share_pct(forecast_peak_pct=peak, sm_count=sm_count, policy=policy) == fixed


def forecast(peak_pct: float | None, *, until_ns: int = 1000) -> OnlineProfile:
    return OnlineProfile(workload="chat", gpu_kind="T4", forecast_peak_pct=peak_pct, forecast_until_ns=until_ns)


@pytest.mark.parametrize(
    ("found", "now_ns", "expected"),
    [
        (forecast(70.0), 999, 70.0),
        (forecast(70.0), 1000, 40.0),  # it is past
        (forecast(None), 999, 40.0),
        (None, 999, 40.0),
        (forecast(10.0), 999, 10.0),  # the peak of the last minutes is over, and no other is expected
    ],
)
def test_a_forecast_counts_while_it_holds_and_then_the_peak_that_was_seen(
    found: OnlineProfile | None, now_ns: int, expected: float
) -> None:
    assert expected_peak_pct(found, recent_peak_pct=40.0, now_ns=now_ns) == expected


@pytest.mark.parametrize(("uncovered_pct", "expected"), [(0.0, 0.0), (15.0, 15.0), (40.0, 70.0), (None, 70.0)])
def test_what_beacons_announce_needs_no_sms_left_free(uncovered_pct: float | None, expected: float) -> None:
    peak_pct = expected_peak_pct(forecast(70.0), recent_peak_pct=40.0, uncovered_peak_pct=uncovered_pct, now_ns=999)
    assert peak_pct == expected


def test_nothing_known_stays_unknown() -> None:
    assert expected_peak_pct(None, recent_peak_pct=None, now_ns=1) is None
