"""Measurements that are kept: bounded, and only what is new counts as new."""

from __future__ import annotations

import time

from muxflow.contracts import Gpu, NodeState
from muxflow.contracts.profiles import OnlineProfile
from muxflow_decisions.speed import MeasuredPair, MeasuredPolicy, PairFacts, PairName
from muxflow_predictor.knowledge import Knowledge
from muxflow_predictor.measurements import Measurements

GIB = 2**30


def row(job: int, throughput: float = 0.5, *, time_ns: int = 1, workload: str = "w") -> MeasuredPair:
    return MeasuredPair(
        offline_key=f"acme/{job}",
        workload=workload,
        gpu_kind="A100",
        facts=PairFacts(sm_share_pct=40, online_activity_pct=0.0),
        normalized_throughput=throughput,
        time_ns=time_ns,
    )


def test_the_pairs_that_were_measured_longest_ago_go_first() -> None:
    kept = Measurements(MeasuredPolicy(), rows_max=3)
    for job in (1, 2, 3):
        kept.take(row(job))
    kept.take(row(1, 0.9, time_ns=2))
    assert len(kept) == 3
    assert not kept.of(PairName("acme/2", "w", "A100"))
    assert [each.normalized_throughput for each in kept.of(PairName("acme/1", "w", "A100"))] == [0.5, 0.9]


def test_only_what_says_something_new_is_counted_since_the_last_training() -> None:
    kept = Measurements(MeasuredPolicy(), rows_max=100)
    assert kept.take(row(1))
    assert not kept.take(row(1))
    assert kept.take(row(1, 0.51, time_ns=2))
    assert kept.take(row(1, 0.9, time_ns=3))
    assert kept.new_rows == 2
    assert kept.begin_training() == 2
    assert kept.new_rows == 0


def test_what_was_kept_before_is_neither_new_nor_unsaved() -> None:
    kept = Measurements(MeasuredPolicy(), rows_max=100)
    kept.restore([row(2, time_ns=5), row(1)])
    assert (len(kept), kept.new_rows, kept.unsaved) == (2, 0, False)
    assert kept.take(row(1, 0.9, time_ns=2))
    assert (kept.new_rows, kept.unsaved) == (1, True)


def test_as_many_as_are_kept_are_taken_in_without_holding_up_answers() -> None:
    kept = Measurements(MeasuredPolicy(), rows_max=20_000)
    rows = [row(number, time_ns=number + 1) for number in range(20_100)]
    begun_s = time.process_time()
    kept.restore(rows)
    assert time.process_time() - begun_s < 2.0
    assert len(kept) == len(kept.all()) == 20_000


def test_history_follows_what_is_measured() -> None:
    kept = Measurements(MeasuredPolicy(), rows_max=100)
    kept.take(row(1, 0.9))
    assert kept.history.of("acme/1", "other", "A100").job.rows == 1
    kept.take(row(1, 0.1, workload="v"))
    assert kept.history.of("acme/1", "other", "A100").job.rows == 2


def test_the_smallest_gpu_of_a_kind_is_its_memory() -> None:
    known = Knowledge()
    assert known.memory_bytes("A100") is None
    large, small, other = (
        Gpu(uuid=uuid, kind=kind, memory_bytes=memory * GIB)
        for uuid, kind, memory in (("1", "A100", 80), ("2", "A100", 40), ("3", "T4", 15))
    )
    assert known.take_node(NodeState(node="a", boot_id="x", gpus=(large,)))
    assert known.memory_bytes("A100") == 80 * GIB
    assert known.take_node(NodeState(node="b", boot_id="x", gpus=(small, large, other)))
    assert known.memory_bytes("A100") == 40 * GIB
    assert not known.take_node(NodeState(node="b", boot_id="x", gpus=(other,)))


def test_answers_go_by_a_service_as_it_was_until_it_has_changed_by_much() -> None:
    known = Knowledge()

    def service(mean: float) -> OnlineProfile:
        return OnlineProfile(workload="w", gpu_kind="A100", activity_pct_mean=mean, activity_pct_p99=60.0)

    assert known.take_online(service(20.0))
    assert not known.take_online(service(20.4))
    assert known.online("w", "A100") == service(20.0)
    assert known.services("A100") == [service(20.4)]
    assert known.take_online(service(30.0))
    assert known.online("w", "A100") == service(30.0)
