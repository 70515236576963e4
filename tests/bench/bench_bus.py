"""Measures the bus and the way of a job over it; prints one JSON object.

What is compared is measured in the same run, each ``bare_…`` twin right after its own: a loop of nats-py and msgspec
alone, with the same bytes, the same server and the same window, as the ceiling of what the library allows. Absolute
times drift on shared machines; ratios hold.

- ``start_ms_…``: a client sends a submission → the job's program has begun, the machine idle, one job after the other.
- ``restart_ms_p99_queued``: 1,000 jobs queued on one GPU; the end of one job's program → the next one's has begun.
- ``submissions_per_s``: from the first submission sent until the scheduler has recorded the last and said so.
- ``decisions_per_s``: published by compare-and-swap and acked.
- ``telemetry_gpu_samples_per_s``: taken in, decoded and handed to a handler by one process, 8 GPUs a message.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import nats
from nats.aio.client import Client
from nats.aio.msg import Msg

sys.path.insert(0, str(Path(__file__).parent.parent / "support"))

from muxflow import logs
from muxflow.bus import Bus, Message
from muxflow.bus.credentials import Principal
from muxflow.contracts import (
    GpuDecision,
    GpuRequest,
    GpuSample,
    JobAccepted,
    JobSpec,
    JobSubmit,
    Launch,
    NodeTelemetry,
    Role,
    RunExited,
    Slot,
    encode,
)
from muxflow.contracts.catalogue import DECISIONS, JOBS_ACCEPTED, JOBS_SUBMIT, RUNS_EXITED, TELEMETRY
from muxflow.settings import LogSettings
from world import World

NODE = "bench"
WINDOW = 1024
GIB = 2**30


def spec(*command: str) -> JobSpec:
    return JobSpec(command=command or ("true",), gpu=GpuRequest(memory_bytes=GIB))


async def windowed(count: int, send: Callable[[int], Awaitable[object]], window: int = WINDOW) -> float:
    """Send `count` with at most `window` outstanding; returns how many a second."""
    begun = time.perf_counter()
    numbers = iter(range(count))

    async def work() -> None:
        for number in numbers:
            await send(number)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(window):
            tasks.create_task(work())
    return count / (time.perf_counter() - begun)


async def bare_client(world: World, role: Role, bound_to: str | None = None) -> Client:
    principal = Principal(role=role, bound_to=bound_to)
    return await nats.connect(
        world.urls[0],
        nkeys_seed=str(principal.seed_path(world.credentials)),
        inbox_prefix=principal.inbox_prefix.encode(),
    )


async def submissions(world: World, count: int) -> dict[str, float]:
    user = await world.connect(Principal(role=Role.USER, bound_to="default"))
    accepted = asyncio.Event()
    left = count

    def note(_: Message[JobAccepted]) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            accepted.set()

    await user.subscribe(JOBS_ACCEPTED, note, bindings={"tenant": "default"})
    event = JobSubmit(spec=spec())
    begun = time.perf_counter()
    await windowed(count, lambda n: user.publish(JOBS_SUBMIT, event, tenant="default", job=f"s{n}"))
    await asyncio.wait_for(accepted.wait(), 120)
    ours = count / (time.perf_counter() - begun)
    await user.close()

    world.services["scheduler"].kill()  # the bare loop has the machine for itself
    client = await bare_client(world, Role.USER, "default")
    stream = client.jetstream()
    payload = encode(event)
    bare = await windowed(count, lambda n: stream.publish(f"muxflow.jobs.submit.default.b{n}", payload))
    await client.close()
    return {"submissions_per_s": ours, "bare_submissions_per_s": bare}


async def decisions(world: World, count: int, gpus: int = 1000) -> dict[str, float]:
    bus = await world.connect(Principal(role=Role.SCHEDULER))
    job = spec("python", "train.py")
    slot = Slot(tenant="default", job="j", attempt=1, memory_quota_bytes=GIB, launch=Launch.of(job))
    last: dict[int, int] = {}

    def decision(number: int) -> GpuDecision:
        return GpuDecision(
            id=f"bench.{number}",
            source="bench",
            time_ns=1,
            node="n",
            gpu=str(number % gpus),
            term=1,
            generation=number,
            slots=(slot,),
        )

    async def decide(number: int) -> None:
        gpu = number % gpus
        ack = await bus.publish(DECISIONS, decision(number), expect_last=last.get(gpu, 0), node="n", gpu=str(gpu))
        last[gpu] = ack.sequence

    ours = await windowed(count, decide, window=min(WINDOW, gpus) // 2)
    await bus.close()

    client = await bare_client(world, Role.SCHEDULER)
    stream = client.jetstream()

    async def bare_decide(number: int) -> None:
        await stream.publish(f"muxflow.decisions.bare.{number % gpus}", encode(decision(number)))

    bare = await windowed(count, bare_decide, window=min(WINDOW, gpus) // 2)
    await client.close()
    return {"decisions_per_s": ours, "bare_decisions_per_s": bare}


def telemetry_event(number: int) -> NodeTelemetry:
    samples = tuple(
        GpuSample(
            gpu=f"GPU-{number:08d}-{index}",
            utilization_pct=50.0,
            sm_activity_pct=41.5,
            memory_used_bytes=8 * GIB,
            memory_total_bytes=16 * GIB,
            sm_clock_mhz=1590,
            throttle_reasons=0,
            power_w=61.25,
            temperature_c=55.0,
            online_activity_pct=20.5,
            offline_busy_permille=210,
            budget_permille=800,
        )
        for index in range(8)
    )
    return NodeTelemetry(id=f"t{number}", source="monitor@bench", time_ns=time.time_ns(), node="bench", gpus=samples)


PUBLISHER = """
import asyncio, sys, nats
async def main(url, seed, count):
    client = await nats.connect(url, nkeys_seed=seed)
    payload = sys.stdin.buffer.read()
    for number in range(int(count)):
        await client.publish("muxflow.telemetry.bench", payload)
        if number % 64 == 0:
            await client.flush()
    await client.drain()
asyncio.run(main(*sys.argv[1:]))
"""
"""A process of its own, so that only the reading side is measured in ours."""


async def publish_telemetry(world: World, count: int) -> asyncio.subprocess.Process:
    seed = Principal(role=Role.NODE, bound_to=NODE).seed_path(world.credentials)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PUBLISHER, world.urls[0], str(seed), str(count), stdin=asyncio.subprocess.PIPE
    )
    assert process.stdin is not None
    process.stdin.write(encode(telemetry_event(1)))
    process.stdin.close()
    return process


class Tally:
    """Counts samples and the CPU time that taking them in has cost."""

    def __init__(self, messages: int) -> None:
        self.left = messages
        self.samples = 0
        self.done = asyncio.Event()
        self.cpu_s = time.process_time()

    def take(self, event: NodeTelemetry) -> None:
        self.samples += len(event.gpus)
        self.left -= 1
        if self.left == 0:
            self.cpu_s = time.process_time() - self.cpu_s
            self.done.set()


async def telemetry(world: World, messages: int) -> dict[str, float]:
    """Samples per second of one core's time: the reader is never the one who waits."""

    async def ours(tally: Tally) -> Callable[[], Awaitable[None]]:
        bus: Bus = await world.connect(Principal(role=Role.OBSERVER))
        await bus.subscribe(TELEMETRY, lambda message: tally.take(message.event))
        return bus.close

    async def bare(tally: Tally) -> Callable[[], Awaitable[None]]:
        client = await bare_client(world, Role.OBSERVER)
        decoder = msgspec.json.Decoder(NodeTelemetry)

        async def take(msg: Msg) -> None:
            tally.take(decoder.decode(msg.data))

        await client.subscribe("muxflow.telemetry.*", cb=take, pending_msgs_limit=0, pending_bytes_limit=0)
        await client.flush()
        return client.close

    async def measure(subscribe: Callable[[Tally], Awaitable[Callable[[], Awaitable[None]]]]) -> float:
        tally = Tally(messages)
        close = await subscribe(tally)
        publisher = await publish_telemetry(world, messages)
        await asyncio.wait_for(tally.done.wait(), 120)
        await publisher.wait()
        await close()
        return tally.samples / tally.cpu_s

    rates: dict[str, list[float]] = {"telemetry_gpu_samples_per_s": [], "bare_telemetry_gpu_samples_per_s": []}
    for _ in range(3):
        for name, subscribe in zip(rates, (ours, bare), strict=True):
            rates[name].append(await measure(subscribe))
    return {name: statistics.median(values) for name, values in rates.items()}


async def starts(world: World, directory: Path, count: int) -> dict[str, float]:
    """Idle: each job is sent when the one before has ended."""
    user = await world.connect(Principal(role=Role.USER, bound_to="default"))
    exited: asyncio.Queue[str] = asyncio.Queue()
    await user.subscribe(
        RUNS_EXITED, lambda message: exited.put_nowait(message.event.job), bindings={"tenant": "default"}
    )
    times_ms = []
    for number in range(count):
        stamp = directory / f"start-{number}"
        event = JobSubmit(spec=spec("sh", "-c", f"date +%s%N > {stamp}"))
        sent_ns = time.time_ns()
        await user.publish(JOBS_SUBMIT, event, tenant="default", job=f"start{number}")
        await asyncio.wait_for(exited.get(), 30)
        times_ms.append((int(stamp.read_text()) - sent_ns) / 1e6)
        await asyncio.sleep(0.05)  # idle again
    await user.close()
    quantiles = statistics.quantiles(times_ms, n=100)
    return {"start_ms_p50": quantiles[49], "start_ms_p99": quantiles[98]}


async def restarts(world: World, directory: Path, queued: int, measured: int) -> dict[str, float]:
    """A queue of `queued`; jobs end one after the other, the first `measured` gaps count."""
    user = await world.connect(Principal(role=Role.USER, bound_to="default"))
    left = measured + 1
    done = asyncio.Event()

    def note(_: Message[RunExited]) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            done.set()

    diary = directory / "diary"
    hold = directory / "hold"
    blocker = JobSubmit(spec=spec("sh", "-c", f"while [ ! -e {hold} ]; do sleep 0.05; done"))
    await user.publish(JOBS_SUBMIT, blocker, tenant="default", job="blocker")
    event = JobSubmit(spec=spec("sh", "-c", f"date +%s%N >> {diary}; date +%s%N >> {diary}"))
    await windowed(queued, lambda n: user.publish(JOBS_SUBMIT, event, tenant="default", job=f"q{n}"))
    await user.subscribe(RUNS_EXITED, note, bindings={"tenant": "default"})
    hold.touch()
    await asyncio.wait_for(done.wait(), 240)
    await user.close()
    stamps = [int(line) for line in diary.read_text().split()]
    gaps_ms = [(begin - end) / 1e6 for end, begin in zip(stamps[1::2], stamps[2::2], strict=False)][:measured]
    quantiles = statistics.quantiles(gaps_ms, n=100)
    return {"restart_ms_p50_queued": quantiles[49], "restart_ms_p99_queued": quantiles[98]}


async def measure(arguments: argparse.Namespace) -> dict[str, float]:
    figures: dict[str, float] = {}
    scale = arguments.scale
    with tempfile.TemporaryDirectory(prefix="muxflow-bench-") as root:
        world = World(Path(root), nodes={NODE: 1}, env={"MUXFLOW_LEASE__NODE_S": "10", "MUXFLOW_LOG__LEVEL": "warning"})
        try:
            await world.start_servers()
            figures |= await telemetry(world, int(20_000 * scale))
            figures |= await decisions(world, int(10_000 * scale))
            world.add_scheduler()
            figures |= await submissions(world, int(10_000 * scale))
        finally:
            await world.stop()
    with tempfile.TemporaryDirectory(prefix="muxflow-bench-") as root:
        world = World(Path(root), nodes={NODE: 1}, env={"MUXFLOW_LEASE__NODE_S": "10", "MUXFLOW_LOG__LEVEL": "warning"})
        try:
            await world.start_servers()
            world.add_scheduler()
            await world.add_executor(NODE)
            figures |= await starts(world, Path(root), max(20, int(200 * scale)))
            figures |= await restarts(world, Path(root), int(1000 * scale), max(20, int(300 * scale)))
        finally:
            await world.stop()
    return figures


def main() -> None:
    logs.configure(LogSettings(level="error"), service="bench")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies all counts; 0.1 is a quick look")
    figures = asyncio.run(measure(parser.parse_args()))
    print(json.dumps({name: round(value, 2) for name, value in figures.items()}, indent=2))


if __name__ == "__main__":
    main()
