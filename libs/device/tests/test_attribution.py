from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muxflow_device.attribution.busy import BusyMeter
from muxflow_device.attribution.jobs import OfflineJob, memory_bytes, worst_inflation
from muxflow_device.attribution.online import OfflineWeight, OnlineMeter
from muxflow_device.attribution.processes import Crowd, Process, Side
from muxflow_device.pages import JobUsage, ProcessSlot
from muxflow_device.readings.look import Look, Share

MS_NS = 1_000_000
PERIOD_NS = 100 * MS_NS
START_NS = 1_000 * PERIOD_NS


def offline(busy_ms: float, *, name: str = "default.job.1", inflight: int = 0, **fields: Any) -> OfflineJob:
    """A job of one process."""
    process = ProcessSlot(
        pid=10,
        owner=10,
        launches=0,
        busy_ns=int(busy_ms * MS_NS),
        throttled_ns=0,
        frozen_ns=0,
        refused_bytes=0,
        inflight_ns=0,
        inflight=inflight,
        drained=False,
        gate_epoch=0,
        **{"memory_bytes": 0, **fields},
    )
    usage = JobUsage(
        processes=(process,),
        ended=(),
        launches=0,
        busy_ns=process.busy_ns,
        throttled_ns=0,
        frozen_ns=0,
        refused_bytes=0,
    )
    return OfflineJob(name=name, usage=usage)


def process(pid: int, side: Side) -> Process:
    return Process(pid=pid, name="program", side=side, memory_bytes=None)


def holding(pid: int, memory_bytes: int | None, side: Side = Side.OFFLINE) -> Process:
    return Process(pid=pid, name="program", side=side, memory_bytes=memory_bytes)


OURS = process(10, Side.OFFLINE)
THEIRS = process(20, Side.ONLINE)
SERVER = process(30, Side.SERVER)
BOTH = Crowd((OURS, THEIRS))


class Bench:
    """A GPU that is looked at ten times a second."""

    def __init__(self) -> None:
        self.now_ns = START_NS
        self.busy = BusyMeter()
        self.online = OnlineMeter()
        self.busy_ms = 0.0
        self.busy.take(self.now_ns, [offline(0)])

    def look(
        self,
        *,
        busy: float,
        crowd: Crowd | None = BOTH,
        by_process: dict[int, float] | None = None,
        utilization: float | None = None,
        sm_activity: float | None = None,
    ) -> float | None:
        """One period with these shares, in which the meters covered just that period."""
        begin_ns, self.now_ns = self.now_ns, self.now_ns + PERIOD_NS
        self.busy_ms += 100 * busy
        self.busy.take(self.now_ns, [offline(self.busy_ms)])
        look = Look(
            time_ns=self.now_ns,
            utilization=None if utilization is None else Share(begin_ns, self.now_ns, utilization),
            sm_activity=None if sm_activity is None else Share(begin_ns, self.now_ns, sm_activity),
            process_utilization=by_process,
        )
        return self.online.estimate_pct(look, self.busy, crowd)


# --- how busy the offline side is


def test_the_busy_share_is_that_of_the_asked_interval() -> None:
    meter = BusyMeter()
    for number, busy_ms in enumerate((0, 100, 100, 150)):
        meter.take(START_NS + number * PERIOD_NS, [offline(busy_ms)])
    assert meter.share(START_NS, START_NS + PERIOD_NS) == 1.0
    assert meter.share(START_NS + PERIOD_NS, START_NS + 2 * PERIOD_NS) == 0.0
    assert meter.newest() == 0.5
    assert meter.share(START_NS, START_NS + 3 * PERIOD_NS) == pytest.approx(0.5)
    assert meter.share(START_NS + PERIOD_NS // 2, START_NS + PERIOD_NS + PERIOD_NS // 2) == pytest.approx(0.5)


def test_jobs_add_up_and_never_to_more_than_the_time_that_passed() -> None:
    meter = BusyMeter()
    meter.take(START_NS, [offline(0, name="a"), offline(0, name="b")])
    meter.take(START_NS + PERIOD_NS, [offline(30, name="a"), offline(40, name="b")])
    assert meter.newest() == pytest.approx(0.7)
    meter.take(START_NS + 2 * PERIOD_NS, [offline(130, name="a"), offline(140, name="b")])
    assert meter.newest() == 1.0


def test_what_ran_before_the_monitor_began_does_not_count() -> None:
    meter = BusyMeter()
    meter.take(START_NS, [offline(5_000)])
    assert meter.newest() == 0.0
    meter.take(START_NS + PERIOD_NS, [offline(5_020)])
    assert meter.newest() == pytest.approx(0.2)


def test_a_job_that_appears_counts_from_its_beginning_and_one_that_ends_takes_nothing_back() -> None:
    meter = BusyMeter()
    meter.take(START_NS, [])
    meter.take(START_NS + PERIOD_NS, [offline(60, name="new")])
    assert meter.newest() == pytest.approx(0.6)
    meter.take(START_NS + 2 * PERIOD_NS, [])
    assert meter.newest() == 0.0
    assert meter.share(START_NS, START_NS + PERIOD_NS) == pytest.approx(0.6)


def test_an_operation_that_is_in_flight_from_look_to_look_is_running() -> None:
    meter = BusyMeter()
    meter.take(START_NS, [offline(10, inflight=1)])
    meter.take(START_NS + PERIOD_NS, [offline(10, inflight=1)])
    assert meter.newest() == 1.0
    meter.take(START_NS + 2 * PERIOD_NS, [offline(400, inflight=0)])  # known to be complete: counted before already
    assert meter.newest() == 1.0


@given(counters=st.lists(st.integers(0, 2**53), min_size=2, max_size=20))
def test_no_counter_makes_a_share_that_cannot_be(counters: list[int]) -> None:
    meter = BusyMeter()
    for number, busy_ns in enumerate(counters):
        meter.take(START_NS + number * PERIOD_NS, [offline(busy_ns / MS_NS)])
        assert 0.0 <= meter.newest() <= 1.0
        assert 0.0 <= meter.share(START_NS, START_NS + number * PERIOD_NS + 1) <= 1.0


def test_the_worst_inflation_is_that_of_those_who_know_it() -> None:
    assert worst_inflation([offline(0)]) is None
    assert (
        worst_inflation([offline(0, inflation_permille=1100), offline(0, inflation_permille=1900), offline(0)]) == 1900
    )


def test_offline_memory_is_what_the_slot_says_or_nvml_if_that_is_more() -> None:
    jobs = [offline(0, memory_bytes=100)]
    assert memory_bytes(jobs, None) == 100
    assert memory_bytes(jobs, Crowd((holding(10, 150), holding(11, 7)))) == 157
    assert memory_bytes(jobs, Crowd((holding(10, 50), holding(20, 999, Side.ONLINE)))) == 100
    assert memory_bytes([], Crowd((holding(10, None),))) == 0


# --- how active the online side is


def test_a_gpu_without_meters_gives_no_activity() -> None:
    assert Bench().look(busy=0.5) is None


def test_before_gpm_has_had_two_samples_utilization_does_not_stand_in_for_it() -> None:
    look = Look(time_ns=PERIOD_NS, settling=True, utilization=Share(0, PERIOD_NS, 1.0))
    assert OnlineMeter().estimate_pct(look, BusyMeter(), BOTH) is None
    assert OnlineMeter().estimate_pct(look, BusyMeter(), Crowd((OURS,))) == 0.0


def test_without_offline_work_all_activity_is_the_online_sides() -> None:
    assert Bench().look(busy=0.0, sm_activity=0.62) == pytest.approx(62)
    assert Bench().look(busy=0.0, utilization=0.62) == pytest.approx(62)


def test_with_nobody_else_on_the_gpu_the_online_side_is_idle_whatever_the_meters_say() -> None:
    assert Bench().look(busy=0.3, utilization=1.0, crowd=Crowd((OURS,))) == 0.0


def test_an_mps_server_without_clients_in_sight_proves_nothing() -> None:
    activity = Bench().look(busy=0.3, utilization=1.0, crowd=Crowd((SERVER,)))
    assert activity is not None
    assert activity > 50


def test_a_saturating_job_beside_an_idle_service_leaves_nothing_for_it() -> None:
    assert Bench().look(busy=0.9, utilization=0.9, by_process={10: 0.9}) == pytest.approx(0, abs=1)
    assert Bench().look(busy=0.9, sm_activity=0.9, by_process={10: 0.9}) == pytest.approx(0, abs=1)


def test_what_nvml_counts_for_online_processes_is_theirs() -> None:
    assert Bench().look(busy=0.9, utilization=0.95, by_process={10: 0.9, 20: 0.4}) == pytest.approx(40)


def test_unknown_processes_count_as_online() -> None:
    crowd = Crowd((OURS, process(40, Side.UNKNOWN)))
    assert Bench().look(busy=0.9, utilization=0.95, by_process={40: 0.3}, crowd=crowd) == pytest.approx(30)


def test_a_share_that_nvml_counts_for_the_mps_server_is_nobodys() -> None:
    by_server = {30: 1.0}
    activity = Bench().look(busy=0.5, utilization=0.75, by_process=by_server, crowd=Crowd((OURS, THEIRS, SERVER)))
    assert activity == pytest.approx(48)  # (75 - 50 - 1) / (100 - 50): what shows beside ours


def test_without_an_account_of_processes_what_shows_beside_ours_is_scaled_up() -> None:
    assert Bench().look(busy=0.5, utilization=0.76) == pytest.approx(50)


def test_online_work_on_sms_that_ours_leave_free_is_seen_once_our_weight_is_known() -> None:
    bench = Bench()
    for _ in range(10):
        assert bench.look(busy=1.0, sm_activity=0.4, by_process={10: 1.0}) == pytest.approx(0)
    activity = bench.look(busy=1.0, sm_activity=0.7, by_process={10: 1.0, 20: 1.0})
    assert activity is not None
    assert 30 <= activity <= 50  # 30% of the SMs are theirs; what hides behind ours is scaled up


def test_small_offline_kernels_after_big_ones_make_no_idle_service_active() -> None:
    bench = Bench()
    for _ in range(10):
        bench.look(busy=1.0, sm_activity=0.1, by_process={10: 1.0})
    assert bench.look(busy=1.0, sm_activity=1.0, by_process={10: 1.0}) == pytest.approx(0)


def test_when_ours_hide_everything_nothing_is_known() -> None:
    assert Bench().look(busy=1.0, utilization=1.0, by_process=None) is None


def test_the_weight_of_offline_kernels_is_forgotten_after_a_minute() -> None:
    weight = OfflineWeight()
    assert weight.value == 1.0
    weight.take(Share(0, PERIOD_NS, 0.3), 1.0)
    assert weight.value == pytest.approx(0.3)
    weight.take(Share(0, 30 * 10**9, 0.8), 1.0)
    assert weight.value == pytest.approx(0.3)
    weight.take(Share(0, 62 * 10**9, 0.8), 0.0)
    assert weight.value == pytest.approx(0.8)


@given(
    busy=st.floats(0, 1),
    device=st.floats(0, 1),
    theirs=st.none() | st.floats(0, 1),
)
def test_online_activity_is_a_percentage_of_the_device(busy: float, device: float, theirs: float | None) -> None:
    by_process = None if theirs is None else {20: theirs}
    coarse = Bench().look(busy=busy, by_process=by_process, utilization=device)
    fine = Bench().look(busy=busy, by_process=by_process, sm_activity=device)
    assert coarse is None or 0 <= coarse <= 100
    assert fine is None or 0 <= fine <= 100
