"""Promise 1: an acknowledged job is never lost, has no two live attempts, and one terminal event, whatever is killed.

Real servers, schedulers, executors, shims and jobs. In each round ten jobs are submitted while something is killed by
SIGKILL or cut off at a random moment. What is true of attempts is proved from what the jobs themselves wrote down.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from muxflow.bus import Bus, BusError, Message
from muxflow.bus.credentials import Principal
from muxflow.contracts import GpuRequest, JobSpec, JobSubmit, Role
from muxflow.contracts.catalogue import JOBS_CANCELLED, JOBS_FAILED, JOBS_FINISHED, JOBS_SUBMIT
from testimony import lives, overlaps
from world import WITNESS, World, running

TERMINAL = (JOBS_FINISHED, JOBS_FAILED, JOBS_CANCELLED)
NODES = {"node-a": 2, "node-b": 2}
JOBS_A_ROUND = 10
ENV = {
    "MUXFLOW_SCHEDULER__RETRY__FIRST_NS": "100000000",
    "MUXFLOW_SCHEDULER__RETRY__MAX_LOSSES": "1000",
}
"""Jobs that lose their shims again and again must not be given up for that here, nor wait long."""

Disturbance = Callable[[], Awaitable[None]]


class Chaos:
    """One world under fire."""

    def __init__(self, world: World, user: Bus, seed: int) -> None:
        self.world = world
        self.user = user
        self.random = random.Random(seed)
        self.diaries = world.root / "diaries"
        self.diaries.mkdir()
        self.submitted: set[str] = set()
        self.terminal: Counter[str] = Counter()
        self.outcomes: Counter[str] = Counter()
        self.done: Counter[str] = Counter()
        self._changed = asyncio.Condition()

    async def note(self, message: Message[Any]) -> None:
        async with self._changed:
            self.terminal[message.names["job"]] += 1
            self.outcomes[message.subject.name] += 1
            self._changed.notify_all()

    async def round(self, number: int, disturbances: dict[str, Disturbance]) -> None:
        """Submit jobs, disturb once or twice meanwhile, wait until every job has ended."""
        jobs = [f"r{number}-{index}" for index in range(JOBS_A_ROUND)]
        submitting = asyncio.gather(*(self._submit(job) for job in jobs))
        for name in self.random.choices(sorted(disturbances), k=self.random.choice((1, 1, 2))):
            await asyncio.sleep(self.random.uniform(0, 0.5))
            await disturbances[name]()
            self.done[name] += 1
        async with asyncio.timeout(60):
            await submitting
        try:
            async with self._changed, asyncio.timeout(60):
                while not all(self.terminal[job] for job in jobs):
                    await self._changed.wait()
        except TimeoutError:
            missing = [job for job in jobs if not self.terminal[job]]
            pytest.fail(f"round {number}: no terminal event of {missing} after {dict(self.done)}\n{self.logs()}")

    async def _submit(self, job: str) -> None:
        await asyncio.sleep(self.random.uniform(0, 0.3))
        child = ("--child",) if self.random.random() < 0.3 else ()
        duration = f"{self.random.uniform(0.05, 0.4):.3f}"
        command = (sys.executable, "-I", "-S", str(WITNESS), str(self.diaries / job), duration, *child)
        spec = JobSpec(command=command, gpu=GpuRequest(memory_bytes=2**30), stop_grace_s=0.2)
        await self.user.publish(JOBS_SUBMIT, JobSubmit(spec=spec), tenant="default", job=job)
        self.submitted.add(job)

    async def kill_scheduler(self) -> None:
        await self._kill("scheduler")

    async def kill_executor(self) -> None:
        await self._kill(self.random.choice(sorted(NODES)))

    async def _kill(self, name: str) -> None:
        service = self.world.services[name]
        await asyncio.to_thread(service.kill)
        await asyncio.sleep(self.random.uniform(0, 0.3))
        service.start()

    async def kill_shim(self) -> None:
        shims = [pid for node in NODES for pid in self.world.shims(node)]
        if shims:
            _kill(self.random.choice(shims))

    async def kill_executor_and_shim(self) -> None:
        node = self.random.choice(sorted(NODES))
        await asyncio.to_thread(self.world.services[node].kill)
        shims = self.world.shims(node)
        if shims:
            _kill(self.random.choice(shims))
        await asyncio.sleep(self.random.uniform(0, 0.3))
        self.world.services[node].start()

    async def kill_server(self) -> None:
        server = self.world.servers[0]
        await server.kill()
        await asyncio.sleep(self.random.uniform(0, 0.3))
        await server.start()

    async def partition(self) -> None:
        """Cut a node off for longer than its lease lasts."""
        proxy = self.world.proxies[self.random.choice(sorted(NODES))]
        proxy.cut()
        await asyncio.sleep(3.5)
        proxy.mend()

    async def kill_leading_server(self) -> None:
        """Kill the server that leads the stream of jobs; it comes back a second later."""
        name = await self._leader_of_jobs()
        server = self.world.servers[int(name.rpartition("-")[2])]
        await server.kill()
        await asyncio.sleep(1)
        await server.start()

    async def _leader_of_jobs(self) -> str:
        """Ask until the servers have agreed on one."""
        async with await self.world.connect(Principal(role=Role.OPERATOR)) as bus, asyncio.timeout(30):
            while True:
                with contextlib.suppress(BusError, KeyError):
                    answer = await bus.requests.api("STREAM.INFO.JOBS", None, timeout_s=1)
                    return str(answer["cluster"]["leader"])
                await asyncio.sleep(0.1)

    def judge(self) -> list[str]:
        """List everything that must not be."""
        wrong = [line for diary in sorted(self.diaries.iterdir()) for line in overlaps(diary)]
        wrong += [f"{job}: {count} terminal events" for job in self.submitted if (count := self.terminal[job]) != 1]
        wrong += [f"{job} has ended and was never submitted" for job in self.terminal if job not in self.submitted]
        wrong += [
            f"{job} is finished and never came to its end"
            for job in self.submitted
            if not any(life.ended for life in lives(self.diaries / job))
        ]
        return wrong

    def logs(self) -> str:
        parts = []
        for name in (*self.world.services,):
            text = (self.world.root / f"{name}.log").read_text(errors="replace")
            parts.append(f"--- {name}\n{text[-3000:]}")
        return "\n".join(parts)


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it ended by itself in this very moment
        os.kill(pid, signal.SIGKILL)


async def storm(root: Path, *, seed: int, rounds: int, servers: int) -> None:
    """Run so many rounds in one world, and judge."""
    print(f"seed {seed}, {rounds} rounds, {servers} servers")
    # Three servers take 4 to 9 s to agree on new leaders: a node's lease must outlast that.
    env = ENV if servers == 1 else {**ENV, "MUXFLOW_LEASE__NODE_S": "12"}
    async with (
        running(root, servers=servers, nodes=NODES, env=env) as world,
        await world.connect(Principal(role=Role.USER, bound_to="default")) as user,
        await world.connect(Principal(role=Role.OPERATOR)) as operator,
    ):
        chaos = Chaos(world, user, seed)
        await operator.read(TERMINAL, chaos.note, start="all")
        disturbances: dict[str, Disturbance] = {
            "scheduler": chaos.kill_scheduler,
            "executor": chaos.kill_executor,
            "shim": chaos.kill_shim,
            "executor and shim": chaos.kill_executor_and_shim,
            "server": chaos.kill_server,
            "partition": chaos.partition,
        }
        if servers > 1:
            disturbances = {"leading server": chaos.kill_leading_server}
        for number in range(rounds):
            begun = time.monotonic()
            before = Counter(chaos.done)
            await chaos.round(number, disturbances)
            print(f"round {number}: {dict(chaos.done - before)} took {time.monotonic() - begun:.1f} s")
        await until_idle(world)
        wrong = chaos.judge()
        print(f"{dict(chaos.done)} {dict(chaos.outcomes)}")
        assert not wrong, "\n".join(wrong) + chaos.logs()
    assert world.left_behind() == []


async def until_idle(world: World) -> None:
    """Wait until no shim and no job runs any more."""
    async with asyncio.timeout(20):
        while any(str(WITNESS) in command for command in world.left_behind()) or any(map(world.shims, NODES)):
            await asyncio.sleep(0.05)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_no_job_is_lost_doubled_or_ended_twice_whatever_is_killed(tmp_path: Path, seed: int) -> None:
    await storm(tmp_path, seed=seed, rounds=4, servers=1)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("seed", [5])
async def test_nor_when_the_leader_of_three_servers_is_killed(tmp_path: Path, seed: int) -> None:
    await storm(tmp_path, seed=seed, rounds=2, servers=3)


@pytest.mark.soak
@pytest.mark.timeout(4 * 3600)
async def test_five_hundred_rounds(tmp_path: Path) -> None:
    base = time.time_ns() % 2**32
    for part in range(50):
        servers = 3 if part % 5 == 4 else 1
        await storm(tmp_path / str(part), seed=base + part, rounds=10, servers=servers)
