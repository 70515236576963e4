"""Every pending job can be told why it waits, with numbers."""

from __future__ import annotations

import pytest

from muxflow_decisions.matching import Closed, FleetGpu, FleetView, Need, Offer, WaitingJob, why_waiting

GIB = 2**30
T4 = Offer("T4", 16 * GIB, ("process",))
A100 = Offer("A100", 80 * GIB, ("docker", "process"))
SECOND = 1_000_000_000


def gpu(node: str = "node-a", offer: Offer = T4, closed: Closed | None = None, **state: bool) -> FleetGpu:
    return FleetGpu(node=node, uuid=f"GPU-{node}", offer=offer, closed=closed, **state)


def job(memory_gib: int = 8, kinds: tuple[str, ...] = (), runner: str = "process") -> WaitingJob:
    return WaitingJob(key=("default", "x"), need=Need(memory_gib * GIB, kinds, runner))


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
