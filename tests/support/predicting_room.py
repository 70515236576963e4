"""A predictor on a real server, between a scripted profiler and those who ask."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from typing import Any, Final

import pytest
from prometheus_client import CollectorRegistry

from muxflow.bus import Bus
from muxflow.bus.credentials import Principal
from muxflow.contracts import ALL_TENANTS, Gpu, NodeState, Pair, Role, SpeedsQuery, SpeedsReply
from muxflow.contracts.catalogue import (
    NODES_STATE,
    PROFILES_CORUN,
    PROFILES_OFFLINE,
    PROFILES_ONLINE,
    QUERY_PREDICT,
    QUERY_SPEEDS,
    SPEEDS,
)
from muxflow.contracts.profiles import CorunProfile, OfflineProfile, OnlineProfile, SpeedModel
from muxflow.contracts.queries import PredictQuery, PredictReply
from muxflow.health import Health
from muxflow.testing import TestServer
from muxflow_decisions.speed import ModelPolicy
from muxflow_predictor.service import Predictor
from muxflow_predictor.settings import PredictorSection, PredictorSettings

KIND: Final = "A100"
GIB: Final = 2**30
TENANT: Final = "acme"
ROLES: Final = (
    Principal(role=Role.PREDICTOR),
    Principal(role=Role.PROFILER),
    Principal(role=Role.SCHEDULER),
    Principal(role=Role.OPERATOR),
    Principal(role=Role.NODE, bound_to="n1"),
    Principal(role=Role.USER, bound_to=TENANT),
)
OWN_ROWS_ONLY: Final = ModelPolicy(shipped_until_rows=0, held_out_rows_min=4, retrain_rows=10)


def key(job: int) -> str:
    return f"{TENANT}/job-{job}"


def truth(job: int, service: int) -> float:
    """How fast a job is beside a service, in this world: some jobs are sensitive, some services are rough."""
    return round(0.9 - 0.05 * (job % 8) - 0.04 * (service % 6), 3)


class Room:
    """The predictor and everybody around it."""

    def __init__(self, server: TestServer, stack: AsyncExitStack) -> None:
        self.server = server
        self._stack = stack
        self._running: list[tuple[Predictor, Bus]] = []
        self._time_ns = time.time_ns()

    async def open(self) -> None:
        self.profiler = await self._as(Role.PROFILER)
        self.operator = await self._as(Role.OPERATOR)
        self.user = await self._as(Role.USER, TENANT)
        node = await self._as(Role.NODE, "n1")
        gpus = (Gpu(uuid="GPU-1", kind=KIND, memory_bytes=40 * GIB),)
        await node.publish(NODES_STATE, NodeState(node="n1", boot_id="b", gpus=gpus), node="n1")

    async def _as(self, role: Role, bound_to: str | None = None) -> Bus:
        return await self._stack.enter_async_context(await self.server.connect(role, bound_to, source=role.value))

    async def start(self, **section: Any) -> Predictor:
        """Start a predictor, ready to answer; ``settle_s`` is 0 unless it is given."""
        settings = PredictorSettings(predictor=PredictorSection(**{"settle_s": 0.0, **section}))
        bus = await self.server.connect(Role.PREDICTOR, source="predictor@test")
        predictor = Predictor(settings, bus, Health(CollectorRegistry()))
        self._running.append((predictor, bus))
        await predictor.start()
        await until(lambda: predictor.health.ready() is None, "it is ready")
        return predictor

    async def stop(self) -> None:
        """End it as a signal does. What failed in it fails the test."""
        while self._running:
            predictor, bus = self._running.pop()
            await predictor.stop(signal.SIGTERM)
            await predictor.cancel_tasks()
            await bus.close()
            if predictor._failure.done():
                await predictor.failed()

    async def job(self, number: int) -> None:
        profile = OfflineProfile(
            key=key(number),
            gpu_kind=KIND,
            utilization_pct=90,
            busy_permille=880,
            memory_peak_bytes=2 * GIB,
            kernel_time_us_mean=500,
            launches_per_s=1800,
            confident=True,
        )
        await self.profiler.publish(PROFILES_OFFLINE, profile, key=key(number), gpu_kind=KIND)

    async def service(self, number: int, **changed: Any) -> None:
        profile = OnlineProfile(
            workload=f"service-{number}",
            gpu_kind=KIND,
            **{
                "activity_pct_mean": 20.0,
                "activity_pct_p99": 60.0,
                "forecast_peak_pct": 50.0,
                "memory_peak_bytes": 8 * GIB,
                **changed,
            },
        )
        await self.profiler.publish(PROFILES_ONLINE, profile, workload=f"service-{number}", gpu_kind=KIND)

    async def beside(self, job: int, service: int, throughput: float | None = None, **changed: Any) -> None:
        """Tell of a job beside a service; by default, as it truly is."""
        self._time_ns += 1
        profile = CorunProfile(
            offline_key=key(job),
            workload=f"service-{service}",
            gpu_kind=KIND,
            **{
                "sm_share_pct": 40,
                "online_activity_pct": 20.0,
                "normalized_throughput": truth(job, service) if throughput is None else throughput,
                "measured_s": 20.0,
                **changed,
            },
        )
        await self.profiler.publish(
            PROFILES_CORUN, profile, offline_key=key(job), workload=f"service-{service}", gpu_kind=KIND
        )

    async def world(self, jobs: Iterable[int], services: Iterable[int]) -> None:
        """Tell of all these jobs beside all these services."""
        services = list(services)
        for service in services:
            await self.service(service)
        for job in jobs:
            await self.job(job)
            for service in services:
                await self.beside(job, service)

    async def speeds(self, *pairs: Pair) -> SpeedsReply:
        reply: SpeedsReply = await self.operator.request(
            QUERY_SPEEDS, SpeedsQuery(pairs=pairs), timeout_s=10, tenant=ALL_TENANTS
        )
        return reply

    async def predict(self, job: int, *, asker: Bus | None = None, tenant: str = TENANT) -> PredictReply:
        query = PredictQuery(key=key(job), memory_bytes=4 * GIB, gpu_kind=KIND)
        reply: PredictReply = await (asker or self.user).request(QUERY_PREDICT, query, timeout_s=10, tenant=tenant)
        return reply

    async def model(self) -> SpeedModel | None:
        """The model that is told to serve."""
        message = await self.operator.last(SPEEDS, model="speed")
        return message.event if message is not None else None

    async def await_model(self, *, other_than: str = "") -> SpeedModel:
        """Wait until the predictor answers with a model (another one than this version)."""
        async with asyncio.timeout(40):
            while True:
                reply = await self.speeds()
                model = await self.model()
                if model is not None and reply.version == model.version != other_than:
                    return model
                await asyncio.sleep(0.05)


def pair(job: int, service: int | None, *, sm_share_pct: int | None = 40) -> Pair:
    return Pair(
        offline_key=key(job),
        memory_bytes=4 * GIB,
        gpu_kind=KIND,
        workload=None if service is None else f"service-{service}",
        sm_share_pct=sm_share_pct,
    )


async def until(look: Callable[[], object], what: str, seconds: float = 20.0) -> None:
    """Wait for what only asking again and again can see."""
    try:
        async with asyncio.timeout(seconds):
            while not look():
                await asyncio.sleep(0.01)
    except TimeoutError:
        pytest.fail(f"not within {seconds} s: {what}")
