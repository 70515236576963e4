from __future__ import annotations

from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from muxflow_decisions.device.conduct import Breach, ConductMemory, ConductPolicy, JobSight, Resident, advance

SECOND_NS = 1_000_000_000
LOOK_NS = SECOND_NS // 10
GIB = 2**30
POLICY = ConductPolicy(unprotected_after_s=1.0, memory_after_s=5.0, memory_tolerance_mib=1024, gap_s=2.0)


def resident(owner: int = 7, *, held: bool = True, memory_bytes: int | None = None) -> Resident:
    return Resident(owner=owner, pid=owner, name="python3", held=held, memory_bytes=memory_bytes)


def sight(*residents: Resident, job: str = "default.train.1", quota_bytes: int | None = 8 * GIB) -> JobSight:
    return JobSight(job=job, quota_bytes=quota_bytes, residents=residents)


class Gpu:
    """A GPU that is looked at ten times a second."""

    def __init__(self) -> None:
        self.now_ns = 0
        self.memory = ConductMemory()

    def look(self, *jobs: JobSight, seconds: float = 0.1) -> tuple[Breach, ...]:
        """See the same for so long."""
        for _ in range(round(seconds * 10)):
            self.now_ns += LOOK_NS
            self.memory = advance(self.memory, jobs, now_ns=self.now_ns, policy=POLICY)
        return self.memory.breaches


def test_a_process_without_xcuda_is_a_breach_once_it_has_lasted() -> None:
    gpu = Gpu()
    assert gpu.look(sight(resident(held=False)), seconds=1.0) == ()
    (breach,) = gpu.look(sight(resident(held=False)))
    assert breach.job == "default.train.1"
    assert "process 7 (python3) is on the GPU without xCUDA" in breach.cause
    assert "LD_PRELOAD" in breach.cause
    assert "a free descriptor" in breach.cause, "its environment need not be at fault"


def test_a_process_whose_slot_is_seen_late_is_none() -> None:
    gpu = Gpu()
    gpu.look(sight(resident(held=False)), seconds=0.9)
    gpu.look(sight(resident(held=True)))
    assert gpu.look(sight(resident(held=False)), seconds=0.9) == ()


def test_one_process_after_the_other_is_not_the_same_one_for_long() -> None:
    gpu = Gpu()
    for owner in range(1, 20):
        assert gpu.look(sight(resident(owner, held=False)), seconds=0.5) == ()


def test_memory_beyond_quota_and_tolerance_is_a_breach_with_the_numbers() -> None:
    gpu = Gpu()
    both = sight(resident(1, memory_bytes=6 * GIB), resident(2, memory_bytes=5 * GIB))
    assert gpu.look(both, seconds=5.0) == ()
    (breach,) = gpu.look(both)
    assert breach.cause.startswith("it uses 11.0 GiB on the GPU, 8.0 GiB were asked for")


def test_memory_within_the_tolerance_or_for_a_moment_is_none() -> None:
    gpu = Gpu()
    assert gpu.look(sight(resident(memory_bytes=9 * GIB)), seconds=60.0) == ()
    gpu.look(sight(resident(memory_bytes=20 * GIB)), seconds=4.0)
    gpu.look(sight(resident(memory_bytes=9 * GIB)))
    assert gpu.look(sight(resident(memory_bytes=20 * GIB)), seconds=4.0) == ()


def test_each_process_on_the_gpu_has_the_tolerance() -> None:
    gpu = Gpu()
    four = [resident(owner, memory_bytes=3 * GIB) for owner in range(1, 5)]
    assert gpu.look(sight(*four), seconds=10.0) == ()
    assert gpu.look(sight(*four[:3], resident(4, memory_bytes=3 * GIB + 1)), seconds=10.0) != ()


def test_memory_that_nobody_tells_is_held_against_nobody() -> None:
    gpu = Gpu()
    assert gpu.look(sight(resident(memory_bytes=None)), seconds=60.0) == ()
    assert gpu.look(sight(resident(memory_bytes=20 * GIB), quota_bytes=None), seconds=60.0) == ()


def test_a_breach_stands_until_the_attempt_has_gone() -> None:
    gpu = Gpu()
    breaches = gpu.look(sight(resident(held=False)), seconds=1.1)
    assert gpu.look(sight(), seconds=1.0) == breaches
    assert gpu.look(sight(job="default.other.1")) == ()


def test_looks_too_far_apart_prove_nothing() -> None:
    gpu = Gpu()
    gpu.look(sight(resident(held=False)), seconds=0.5)
    gpu.now_ns += 60 * SECOND_NS
    assert gpu.look(sight(resident(held=False)), seconds=1.0) == ()
    assert gpu.look(sight(resident(held=False)), seconds=1.0) != ()


residents = st.builds(
    Resident,
    owner=st.integers(1, 4),
    pid=st.just(1),
    name=st.just("p"),
    held=st.booleans(),
    memory_bytes=st.none() | st.integers(0, 12 * GIB),
)
looks = st.lists(
    st.tuples(st.integers(1, 3 * SECOND_NS), st.lists(st.tuples(st.sampled_from("ab"), st.lists(residents)))),
    max_size=30,
)


def sights(jobs: Iterable[tuple[str, list[Resident]]]) -> list[JobSight]:
    return [sight(*there, job=job) for job, there in dict(jobs).items()]


@given(looks=looks)
def test_only_who_is_there_is_accused_and_only_of_what_has_lasted(
    looks: list[tuple[int, list[tuple[str, list[Resident]]]]],
) -> None:
    memory, now_ns = ConductMemory(), 0
    for passed_ns, jobs in looks:
        now_ns += passed_ns
        before, there = memory, sights(jobs)
        memory = advance(memory, there, now_ns=now_ns, policy=POLICY)
        accused = [breach.job for breach in memory.breaches]
        assert len(accused) == len(set(accused))
        assert set(accused) <= {job.job for job in there}
        for job in there:
            honest = all(each.held for each in job.residents)
            frugal = sum(each.memory_bytes or 0 for each in job.residents) <= (8 + max(1, len(job.residents))) * GIB
            if honest and frugal and job.job not in {breach.job for breach in before.breaches}:
                assert job.job not in accused
        assert all(since_ns <= now_ns for since_ns in (*memory.loose.values(), *memory.beyond.values()))
