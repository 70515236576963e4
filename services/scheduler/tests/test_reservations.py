"""GPUs that are kept for jobs on their way."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from muxflow_scheduler.desired import GpuKey
from muxflow_scheduler.reservations import Reservations

GPUS = [GpuKey("n", str(number)) for number in range(3)]
JOBS = [("t", str(number)) for number in range(3)]

steps = st.lists(
    st.tuples(st.sampled_from(["make", "release", "expire"]), st.sampled_from(GPUS), st.sampled_from(JOBS)),
    max_size=30,
)


@given(steps)
def test_a_gpu_is_kept_for_one_job_and_a_job_has_one_gpu(found: list[tuple[str, GpuKey, tuple[str, str]]]) -> None:
    kept = Reservations()
    for now_ns, (what, gpu, job) in enumerate(found):
        match what:
            case "make":
                kept.make(gpu, job, until_ns=now_ns + 5)
                assert kept.holder(gpu) == job
            case "release":
                kept.release(job)
                assert kept.gpu_of(job) is None
            case "expire":
                kept.expire(now_ns)
                end_ns = kept.next_end_ns()
                assert end_ns is None or end_ns > now_ns
        for one in JOBS:
            held = kept.gpu_of(one)
            assert held is None or kept.holder(held) == one
        holders = [holder for each in GPUS if (holder := kept.holder(each)) is not None]
        assert len(set(holders)) == len(holders)
    kept.expire(10**9)
    assert kept.next_end_ns() is None
