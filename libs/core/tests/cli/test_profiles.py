"""Profiles as people read them."""

from __future__ import annotations

from muxflow.cli import profiles
from muxflow.contracts import CorunProfile, OfflineProfile, OnlineProfile

GIB = 2**30


def test_a_job_is_told_with_its_figures_or_with_why_there_are_none() -> None:
    good = OfflineProfile(
        key="acme/train",
        gpu_kind="A100",
        launches_per_s=1803.4,
        launches_relative_error=0.012,
        busy_permille=897,
        memory_peak_bytes=3 * GIB // 2,
        sm_share_pct=90,
        confident=True,
    )
    told = ["acme/train", "A100", "1803 ± 1%", "90%", "1.5GiB", "90%", "-", "-"]
    assert profiles._job(good) == told
    failed = OfflineProfile(key="acme/hello", gpu_kind="T4", failure="ended, and had launched nothing")
    assert profiles._job(failed) == ["acme/hello", "T4", "-", "-", "-", "-", "-", "ended, and had launched nothing"]


def test_a_service_is_told_with_its_forecast() -> None:
    service = OnlineProfile(
        workload="chat",
        gpu_kind="T4",
        activity_pct_mean=12.4,
        activity_pct_p99=40.0,
        forecast_peak_pct=50.0,
        memory_peak_bytes=2 * GIB,
        gpus=3,
    )
    assert profiles._service(service) == ["chat", "T4", "12%", "40%", "50%", "2GiB", "3", "-"]


def test_a_pair_is_told_with_its_speed_relative_to_alone() -> None:
    pair = CorunProfile(
        offline_key="acme/train",
        workload="chat",
        gpu_kind="T4",
        sm_share_pct=40,
        online_activity_pct=35.0,
        normalized_throughput=0.623,
        fits=True,
        measured_s=120.0,
    )
    assert profiles._pair(pair) == ["acme/train", "chat", "T4", "62%", "40%", "35%", "yes", "120 s", "-"]
    unfit = CorunProfile(offline_key="acme/big", workload="chat", gpu_kind="T4", fits=False)
    assert profiles._pair(unfit)[3:] == ["-", "-", "-", "no", "-", "-"]
