"""Every pending job can be told why it waits, with numbers."""

from __future__ import annotations

import pytest

from muxflow_decisions.matching import (
    Closed,
    FleetGpu,
    FleetView,
    JobKey,
    MatchingPolicy,
    Need,
    Offer,
    Option,
    Speed,
    Speeds,
    WaitingJob,
    Weights,
    measured_of,
    options,
    spot_of,
    why_waiting,
)

GIB = 2**30
T4 = Offer("T4", 16 * GIB, ("process",))
A100 = Offer("A100", 80 * GIB, ("docker", "process"))
SECOND = 1_000_000_000


def gpu(
    node: str = "node-a",
    offer: Offer = T4,
    closed: Closed | None = None,
    reserved_for: JobKey | None = None,
    **state: bool,
) -> FleetGpu:
    return FleetGpu(node=node, uuid=f"GPU-{node}", offer=offer, closed=closed, reserved_for=reserved_for, **state)


def job(memory_gib: int = 8, kinds: tuple[str, ...] = (), runner: str = "process") -> WaitingJob:
    return WaitingJob(key=("default", "x"), need=Need(memory_gib * GIB, kinds, runner))


QUIET = Offer("T4", 16 * GIB, ("process",), quiet=True)
ALONE = WaitingJob(key=("default", "x"), need=Need(GIB, (), "process", alone=True))
UNHEALTHY = Closed("unhealthy", "online activity 62% is above 60%")

BACK_OFF = WaitingJob(
    key=("default", "x"),
    need=Need(GIB, (), "process"),
    held_since_ns=0,
    not_before_ns=4 * SECOND,
    last_exit="exit code 1",
)


@pytest.mark.parametrize(
    ("waiting", "gpus", "position", "reason"),
    [
        (job(), (), 0, "no node has offered a GPU yet"),
        (job(), (gpu(alive=False),), 0, "no node is alive; known: node-a"),
        (
            job(),
            tuple(gpu(f"node-{name}", alive=False) for name in "abcde"),
            0,
            "no node is alive; known: node-a, node-b, node-c and 2 more",
        ),
        (job(40), (gpu(),), 0, "needs 40 GiB, the largest GPU has 16 GiB (T4 on node-a)"),
        (
            job(40, ("T4",)),
            (gpu(), gpu("node-b", A100)),
            0,
            "needs 40 GiB, the largest GPU of kind T4 has 16 GiB (T4 on node-a)",
        ),
        (job(8, ("L4", "V100")), (gpu(), gpu("node-b", A100)), 0, "no GPU of kind L4 or V100; there are A100, T4"),
        (job(8, (), "docker"), (gpu(),), 0, "no node offers the docker runner; there are node-a"),
        (job(8, ("T4",), "docker"), (gpu(), gpu("node-b", A100)), 0, "no GPU of kind T4; there are A100"),
        (
            job(40),
            (gpu(), gpu("node-b", A100, alive=False)),
            0,
            "the only GPU that fits is on nodes that are not alive: node-b",
        ),
        (job(), (gpu(draining=True),), 0, "the only GPU that fits is on nodes that are draining: node-a"),
        (
            job(),
            (gpu(busy=True), gpu("node-b", busy=True), gpu("node-c", busy=True)),
            12,
            "all 3 GPUs that fit are busy; 12 jobs are ahead in the queue",
        ),
        (job(), (gpu(busy=True),), 1, "the only GPU that fits is busy; 1 job is ahead in the queue"),
        (job(), (gpu(), gpu(busy=True)), 0, "1 GPU that fits is free; it is next in the queue"),
        (
            job(),
            (gpu(closed=UNHEALTHY),),
            0,
            "the only GPU that fits is unhealthy: online activity 62% is above 60%; it is next in the queue",
        ),
        (
            job(),
            (gpu(closed=Closed("unhealthy", "busy")), gpu("node-b", closed=Closed("disabled", "new fans"))),
            0,
            "2 GPUs fit; 1 is unhealthy: busy, 1 is disabled: new fans; it is next in the queue",
        ),
        (
            job(),
            (
                gpu(busy=True, closed=UNHEALTHY),
                gpu("node-b", closed=Closed("unhealthy", "too much")),
                gpu("node-c", closed=Closed("unhealthy", "too hot")),
            ),
            2,
            "3 GPUs fit; 1 is busy, 2 are unhealthy: too much (and 1 other cause); 2 jobs are ahead in the queue",
        ),
        (job(), (gpu(), gpu(closed=UNHEALTHY)), 0, "1 GPU that fits is free; it is next in the queue"),
        (
            job(),
            (gpu(reserved_for=("default", "moves")),),
            0,
            "the only GPU that fits is reserved for default/moves; it is next in the queue",
        ),
        (
            job(),
            (gpu(busy=True), gpu("node-b", reserved_for=("default", "moves")), gpu("node-c", closed=UNHEALTHY)),
            1,
            (
                "3 GPUs fit; 1 is busy, 1 is reserved for default/moves, 1 is unhealthy: online activity 62% is above "
                "60%; 1 job is ahead in the queue"
            ),
        ),
        (
            job(),
            (gpu(busy=True), gpu("node-b", reserved_for=("default", "x"), busy=True)),
            1,
            "GPU GPU-node-b of node-b is reserved for it and not free yet; 1 job is ahead in the queue",
        ),
        (
            ALONE,
            (gpu(), gpu("node-b", QUIET, busy=True)),
            0,
            "waits to be measured alone: the only GPU without an online service is busy; it is next in the queue",
        ),
        (
            ALONE,
            (gpu(), gpu("node-b", QUIET, busy=True), gpu("node-c", QUIET, closed=Closed("disabled"))),
            0,
            (
                "waits to be measured alone: 2 GPUs are without an online service; 1 is busy, 1 is disabled; "
                "it is next in the queue"
            ),
        ),
        (ALONE, (gpu(),), 0, "waits to be measured alone: no GPU that fits is without an online service, of 1"),
        (BACK_OFF, (gpu(),), 0, "retry in 3.2 s after exit code 1"),
    ],
)
def test_the_reason_names_what_stands_in_the_way(
    waiting: WaitingJob, gpus: tuple[FleetGpu, ...], position: int, reason: str
) -> None:
    assert why_waiting(waiting, FleetView(gpus), position=position, now_ns=SECOND * 8 // 10) == reason


def test_demands_that_are_met_only_by_different_gpus_are_told_in_turn() -> None:
    fleet = FleetView((gpu("node-a", Offer("T4", 16 * GIB, ("docker",))), gpu("node-b", Offer("T4", 80 * GIB, ()))))
    assert why_waiting(job(40, (), "docker"), fleet, position=0, now_ns=0) == (
        "needs 40 GiB, the largest GPU with the docker runner has 16 GiB (T4 on node-a)"
    )


# ---------------------------------------------------------------- predictions

SEARCH = Offer("A100", 80 * GIB, ("process",), 3, "search-ranking", 40)
CHAT = Offer("A100", 80 * GIB, ("process",), 1, "chat", 80, assumed_permille=300)
KNOWN = WaitingJob(key=("default", "x"), need=Need(8 * GIB, (), "process", "default/x"))


def predicted(**fits_permille: int) -> Speeds:
    of_workload = {"search": SEARCH, "chat": CHAT}
    return Speeds.of(
        {
            (measured_of(KNOWN.need), spot_of(of_workload[name])): Speed(600, probability)
            for name, probability in fits_permille.items()
        }
    )


@pytest.mark.parametrize(
    ("gpus", "speeds", "reason"),
    [
        ((gpu(offer=SEARCH),), predicted(search=310), "predicted not to fit beside search-ranking on A100 (fits 31%)"),
        (
            (gpu(offer=SEARCH), gpu("node-b", CHAT, busy=True)),
            predicted(search=310, chat=420),
            "predicted not to fit on any of 2 GPUs; at best beside chat on A100 (fits 42%)",
        ),
        (
            (gpu(offer=SEARCH), gpu("node-b", CHAT, busy=True)),
            predicted(search=310, chat=950),
            (
                "the only GPU that fits is busy; 1 other is free, but it is predicted not to fit beside search-ranking "
                "on A100 (fits 31%); it is next in the queue"
            ),
        ),
        (
            (gpu(offer=SEARCH), gpu("node-b", CHAT)),
            predicted(search=310, chat=950),
            "1 GPU that fits is free; it is next in the queue",
        ),
        ((gpu(offer=SEARCH),), Speeds(), "1 GPU that fits is free; it is next in the queue"),
    ],
)
def test_the_reason_tells_what_is_predicted(gpus: tuple[FleetGpu, ...], speeds: Speeds, reason: str) -> None:
    assert why_waiting(KNOWN, FleetView(gpus), position=0, now_ns=0, speeds=speeds) == reason


def test_without_predictions_none_is_a_reason() -> None:
    policy = MatchingPolicy(weights=Weights.MEMORY)
    fleet = FleetView((gpu(offer=SEARCH),))
    told = why_waiting(KNOWN, fleet, position=0, now_ns=0, speeds=predicted(search=310), policy=policy)
    assert told == "1 GPU that fits is free; it is next in the queue"


def test_options_list_gpus_that_are_alike_and_say_why_not() -> None:
    fleet = FleetView(
        (
            gpu("node-a", SEARCH),
            gpu("node-b", CHAT),
            gpu("node-c", CHAT, busy=True),
            gpu("node-d", CHAT, alive=False),
            gpu("node-e", QUIET, busy=True),
            gpu("node-f", QUIET, closed=UNHEALTHY),
            gpu("node-g", QUIET, reserved_for=("default", "other")),
            gpu("node-h", Offer("L4", 4 * GIB, ("process",))),
        )
    )
    found = options(KNOWN, fleet, predicted(search=310), MatchingPolicy())
    assert [(o.offer.kind, o.offer.workload, o.gpus, o.free, o.permille, o.fits_permille, o.note) for o in found] == [
        ("A100", "chat", 2, 1, 300, None, ""),
        ("A100", "search-ranking", 1, 1, 600, 310, "predicted not to fit: 31%, and 80% is asked for"),
        ("T4", None, 3, 0, 500, None, "1 is busy, 1 is reserved, 1 is unhealthy"),
        ("L4", None, 1, 1, 500, None, "needs 8 GiB"),
    ]


def test_a_gpu_that_is_reserved_for_the_job_is_free_for_it() -> None:
    fleet = FleetView((gpu(reserved_for=KNOWN.key),))
    (found,) = options(KNOWN, fleet, Speeds(), MatchingPolicy())
    assert isinstance(found, Option)
    assert (found.free, found.note) == (1, "")
