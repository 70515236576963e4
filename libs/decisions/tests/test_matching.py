"""Who gets a GPU, and which one: against brute force, and against the greedy algorithm of matroids."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muxflow.contracts import Gpu, GpuRequest, JobSpec, NodeState
from muxflow_decisions.lifecycle import submit
from muxflow_decisions.matching import (
    JobKey,
    Matching,
    Need,
    Offer,
    OpenGpu,
    Problem,
    WaitingJob,
    fits,
)
from muxflow_decisions.matching.solve import solve

GIB = 2**30
RUNNERS = (("process",), ("docker", "process"))


def gpu(
    name: str,
    memory_gib: int = 16,
    kind: str = "T4",
    runners: tuple[str, ...] = ("process",),
    *,
    quiet: bool = False,
) -> OpenGpu:
    return OpenGpu(node=f"node-{name}", uuid=f"GPU-{name}", offer=Offer(kind, memory_gib * GIB, runners, quiet=quiet))


def job(
    name: str,
    memory_gib: int = 8,
    *,
    kinds: tuple[str, ...] = (),
    runner: str = "process",
    priority: int = 0,
    submitted_ns: int = 0,
    not_before_ns: int = 0,
    alone: bool = False,
) -> WaitingJob:
    return WaitingJob(
        key=("default", name),
        need=Need(memory_gib * GIB, kinds, runner, alone=alone),
        priority=priority,
        submitted_ns=submitted_ns,
        not_before_ns=not_before_ns,
    )


def match(jobs: Sequence[WaitingJob], gpus: Sequence[OpenGpu], now_ns: int = 0) -> Matching:
    return solve(Problem(waiting=tuple(jobs), gpus=tuple(gpus), now_ns=now_ns))


def placed(jobs: Sequence[WaitingJob], gpus: Sequence[OpenGpu], now_ns: int = 0) -> dict[str, str]:
    return {key[1]: found.uuid for key, found in match(jobs, gpus, now_ns).assignments}


def check_is_possible(matching: Matching, jobs: Sequence[WaitingJob], gpus: Sequence[OpenGpu]) -> None:
    needs = {found.key: found.need for found in jobs}
    keys = [key for key, _ in matching.assignments]
    places = [(found.node, found.uuid) for _, found in matching.assignments]
    assert len(set(keys)) == len(keys)
    assert len(set(places)) == len(places)
    for key, found in matching.assignments:
        assert found in gpus
        assert fits(needs[key], found.offer)


jobs_strategy = st.lists(
    st.builds(
        job,
        name=st.uuids().map(str),
        memory_gib=st.sampled_from([1, 8, 9, 16, 17, 40]),
        kinds=st.sampled_from([(), ("T4",), ("A100",), ("A100", "T4")]),
        runner=st.sampled_from(["process", "docker"]),
        priority=st.integers(0, 2),
        submitted_ns=st.integers(0, 3),
        alone=st.booleans(),
    ),
    max_size=5,
    unique_by=lambda found: found.key,
)
gpus_strategy = st.lists(
    st.builds(
        gpu,
        name=st.uuids().map(str),
        memory_gib=st.sampled_from([8, 16, 40]),
        kind=st.sampled_from(["T4", "A100"]),
        runners=st.sampled_from(RUNNERS),
        quiet=st.booleans(),
    ),
    max_size=5,
    unique_by=lambda found: found.uuid,
)


def every_matching(queue: Sequence[WaitingJob], gpus: Sequence[OpenGpu]) -> Iterator[list[OpenGpu | None]]:
    if not queue:
        yield []
        return
    for place in (None, *(found for found in gpus if fits(queue[0].need, found.offer))):
        for rest in every_matching(queue[1:], [found for found in gpus if found is not place]):
            yield [place, *rest]


@settings(max_examples=150, deadline=None)
@given(jobs_strategy, gpus_strategy)
def test_the_first_in_the_queue_are_placed_and_the_smallest_gpus_used(
    jobs: list[WaitingJob], gpus: list[OpenGpu]
) -> None:
    queue = sorted(jobs, key=lambda found: found.order)
    waits, used = min(
        ([place is None for place in places], sum(place.offer.memory_bytes for place in places if place))
        for places in every_matching(queue, gpus)
    )
    matching = match(jobs, gpus)
    check_is_possible(matching, jobs, gpus)
    assert [key for key, _ in matching.assignments] == [
        found.key for found, waiting in zip(queue, waits, strict=True) if not waiting
    ]
    assert sum(found.offer.memory_bytes for _, found in matching.assignments) == used


def placed_greedily(queue: Sequence[WaitingJob], gpus: Sequence[OpenGpu]) -> list[JobKey]:
    """In queue order, place each job that can be placed beside all those before it (augmenting paths)."""
    holder: dict[int, WaitingJob] = {}

    def find_place(found: WaitingJob, tried: set[int]) -> bool:
        for number, place in enumerate(gpus):
            if number not in tried and fits(found.need, place.offer):
                tried.add(number)
                if number not in holder or find_place(holder[number], tried):
                    holder[number] = found
                    return True
        return False

    return [found.key for found in queue if find_place(found, set())]


def wish(shape: str, kinds: list[str], rng: random.Random) -> tuple[str, ...]:
    match shape:
        case "nested":
            return tuple(kinds[: rng.randint(1, 6)])
        case "crossed":
            return tuple(rng.sample(kinds, 2))
        case "everybody-wants-the-same":
            return ("K0",) if rng.random() < 0.8 else ()
        case "one-of-each":
            return (rng.choice(kinds),)
    return tuple(rng.sample(kinds, rng.randint(0, 6)))


@pytest.mark.parametrize("shape", ["nested", "crossed", "everybody-wants-the-same", "one-of-each", "random"])
@pytest.mark.parametrize("seed", range(6))
def test_structured_fleets_are_matched_as_by_the_greedy_algorithm(shape: str, seed: int) -> None:
    rng = random.Random(f"{shape}{seed}")
    kinds = [f"K{n}" for n in range(6)]
    gpus = [gpu(str(n), rng.choice([8, 16, 24, 40, 80]), rng.choice(kinds)) for n in range(30)]
    jobs = [
        job(str(n), rng.randint(1, 80), kinds=wish(shape, kinds, rng), priority=rng.randint(0, 2), submitted_ns=n)
        for n in range(60)
    ]
    matching = match(jobs, gpus)
    check_is_possible(matching, jobs, gpus)
    queue = sorted(jobs, key=lambda found: found.order)
    assert [key for key, _ in matching.assignments] == placed_greedily(queue, gpus)


def test_priority_goes_before_age_and_age_before_name() -> None:
    jobs = [job("c", priority=1, submitted_ns=9), job("b", submitted_ns=2), job("a", submitted_ns=3)]
    assert list(placed(jobs, [gpu("1"), gpu("2")])) == ["c", "b"]
    assert list(placed([job("b"), job("a")], [gpu("1")])) == ["a"]


def test_one_old_job_is_not_passed_over_for_many_young_ones() -> None:
    old = job("old", 40, submitted_ns=0)
    young = [job(f"young{n}", 8, submitted_ns=n + 1) for n in range(50)]
    gpus = [gpu("big", 40), *(gpu(f"small{n}", 8) for n in range(3))]
    assert placed([*young, old], gpus)["old"] == "GPU-big"


def test_a_small_job_leaves_the_big_gpu_free() -> None:
    assert placed([job("a", 4)], [gpu("1-big", 40), gpu("2-small", 8)]) == {"a": "GPU-2-small"}


def test_a_job_moves_aside_for_a_later_one_that_fits_nowhere_else() -> None:
    picky = job("picky", 4, kinds=("T4",), submitted_ns=2)
    easy = job("easy", 4, submitted_ns=1)
    assert placed([easy, picky], [gpu("1", 8, "T4"), gpu("2", 80, "A100")]) == {"easy": "GPU-2", "picky": "GPU-1"}


def test_a_job_with_an_image_needs_a_node_with_docker() -> None:
    boxed = job("a", runner="docker")
    assert placed([boxed], [gpu("1")]) == {}
    assert placed([boxed], [gpu("1"), gpu("2", runners=("docker", "process"))]) == {"a": "GPU-2"}


def test_a_job_that_is_to_be_measured_needs_a_gpu_where_that_can_be_done() -> None:
    assert placed([job("a", alone=True)], [gpu("1"), gpu("2", memory_gib=40, quiet=True)]) == {"a": "GPU-2"}
    assert placed([job("a", alone=True)], [gpu("1")]) == {}


def test_a_job_in_back_off_is_left_out_until_it_ends() -> None:
    held = job("a", not_before_ns=100)
    assert placed([held], [gpu("1")], now_ns=99) == {}
    assert placed([held], [gpu("1")], now_ns=100) == {"a": "GPU-1"}


def test_nothing_to_do_is_no_error() -> None:
    assert match([], [gpu("1")]).assignments == ()
    assert match([job("a")], []).assignments == ()


def test_the_order_of_arguments_does_not_matter() -> None:
    rng = random.Random(7)
    jobs = [job(str(n), rng.randint(1, 40)) for n in range(30)]
    gpus = [gpu(str(n), rng.choice([8, 16, 40])) for n in range(20)]
    first = match(jobs, gpus).assignments
    rng.shuffle(jobs)
    rng.shuffle(gpus)
    assert match(jobs, gpus).assignments == first


def test_needs_and_offers_are_read_off_records_and_inventories() -> None:
    spec = JobSpec(
        name="a",
        tenant="t",
        command=("x",),
        image="img",
        priority=3,
        gpu=GpuRequest(memory_bytes=5, kinds=("T4", "A100", "T4")),
    )
    waiting = WaitingJob.of(submit(spec, submission_id="s", submitted_ns=7, now_ns=8).record)
    assert (waiting.key, waiting.need) == (("t", "a"), Need(5, ("A100", "T4"), "docker", "t/a"))
    assert waiting.order == (-3, 7, ("t", "a"))
    device = Gpu(uuid="GPU-1", kind="T4", memory_bytes=16)
    state = NodeState(node="n", boot_id="b", gpus=(device,), runners=("process", "docker"))
    free = OpenGpu.of(state, device, session="s1")
    assert (free.node, free.uuid, free.session) == ("n", "GPU-1", "s1")
    assert fits(waiting.need, free.offer)


# ---------------------------------------------------------------- speed, with bounds that only a wrong algorithm misses


def best_seconds(jobs: Sequence[WaitingJob], gpus: Sequence[OpenGpu], repeat: int) -> float:
    best = float("inf")
    for _ in range(repeat):
        began = time.perf_counter()
        match(jobs, gpus)
        best = min(best, time.perf_counter() - began)
    return best


@pytest.mark.bench
def test_one_job_and_one_gpu_take_well_under_a_millisecond() -> None:
    assert best_seconds([job("a")], [gpu("1")], repeat=50) < 0.001


@pytest.mark.bench
def test_a_thousand_queued_jobs_and_a_few_gpus_take_milliseconds() -> None:
    jobs = [job(str(n), 1 + n % 16, priority=n % 3, submitted_ns=n) for n in range(1000)]
    assert best_seconds(jobs, [gpu(str(n)) for n in range(4)], repeat=10) < 0.02


@pytest.mark.bench
def test_twenty_thousand_jobs_and_gpus_take_seconds() -> None:
    rng = random.Random(1)
    kinds = [f"K{n}" for n in range(20)]
    gpus = [gpu(str(n), rng.choice([16, 24, 40, 80]), rng.choice(kinds)) for n in range(20_000)]
    jobs = [
        job(str(n), rng.randint(1, 80), kinds=tuple(sorted(rng.sample(kinds, rng.randint(0, 3)))), submitted_ns=n)
        for n in range(20_000)
    ]
    assert best_seconds(jobs, gpus, repeat=1) < 6
