"""What runs: GPUs, online services, offline jobs, and how long. Data and pure functions."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

import msgspec

from muxflow.supervisor import hardware

WORKLOADS: Final = Path(__file__).resolve().parents[2] / "workloads"
GIB: Final = 2**30
WINDOW_S: Final = 20.0
"""Length of the measured part of each phase, unless told otherwise: four of them, and what lies between, stay below
three minutes."""
TIME_SCALE: Final = 24.0
"""A second of the run is so many of the rates' day. Bursts of 15 s become bursts of 0.6 s: harder than life."""


class Service(msgspec.Struct, frozen=True, kw_only=True):
    """An online service: its model by what one request costs, its load by its place in the sample day."""

    name: str
    kernels: int
    kernel_us: int
    blocks: int
    """1024 threads each: a T4 holds 40 at once, an A100 216, an H200 264."""
    memory_mib: int
    rate_scale: float
    """Times the rates of ``rates-day.txt``, whose mean is 20 requests per second."""
    day_from_s: int
    """Where in that day, which is 1,440 s long, it begins."""

    def arguments(self) -> tuple[str, ...]:
        """Its footprint on the command line of ``online_service.py``."""
        given = {
            "kernels": self.kernels,
            "kernel-us": self.kernel_us,
            "blocks": self.blocks,
            "memory-mib": self.memory_mib,
            "rate-scale": self.rate_scale,
        }
        return tuple(word for name, value in given.items() for word in (f"--{name}", str(value)))


class Gpu(msgspec.Struct, frozen=True, kw_only=True):
    """A GPU of the machine, and who is served there."""

    index: int
    kind: str
    service: Service | None = None

    @property
    def name(self) -> str:
        """As `muxflow devices` calls it."""
        return f"{self.kind} #{self.index}"


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """A size of ``offline_job.py``."""

    name: str
    memory_gib: int
    """Quota: what the program holds, and its context."""
    batches: int
    """So many that it takes the time that is meant, alone."""
    arguments: tuple[str, ...] = ()


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """An offline job of the queue."""

    name: str
    size: Size
    priority: int
    after_s: float = 0.0
    """When it is submitted: 0 is at the begin of the phase, else so long after the begin of the measured window."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """One run."""

    gpus: tuple[Gpu, ...]
    jobs: tuple[Job, ...]
    window_s: float
    warm_up_s: float
    """Longest wait until unknown jobs are measured and every GPU has work."""
    simulated: bool
    seed: int = 1
    time_scale: float = TIME_SCALE

    @property
    def served(self) -> tuple[tuple[Gpu, Service], ...]:
        """GPUs with an online service."""
        return tuple((gpu, gpu.service) for gpu in self.gpus if gpu.service is not None)


SEARCH: Final = Service(
    name="search", kernels=3, kernel_us=300, blocks=24, memory_mib=2048, rate_scale=3.0, day_from_s=300
)
CHAT: Final = Service(
    name="chat", kernels=6, kernel_us=400, blocks=108, memory_mib=12288, rate_scale=1.5, day_from_s=500
)
VISION: Final = Service(
    name="vision", kernels=4, kernel_us=500, blocks=64, memory_mib=6144, rate_scale=2.0, day_from_s=0
)
SERVICES: Final = (SEARCH, CHAT, VISION)
KINDS: Final = ("T4", "H200", "A100", "A100")
"""The last one has no online service: jobs that nobody knows yet are measured there, and predicted beside `VISION`."""

SMALL: Final = Size(name="small", memory_gib=1, batches=1000)
"""10 s alone: long enough to be measured; uses 40% of a T4's SMs, 7% of an A100's."""
MEDIUM: Final = Size(name="medium", memory_gib=2, batches=1200)
"""12 s alone, on all SMs of any GPU."""
LARGE: Final = Size(name="large", memory_gib=8, batches=20_000, arguments=("--copy-mib", "256"))
"""Bound by memory bandwidth; minutes alone, so that work does not run out."""
SIZES: Final = (SMALL, MEDIUM, LARGE)


def fleet(kinds: tuple[str, ...]) -> tuple[Gpu, ...]:
    """Give the services their GPUs; the last GPU has none, unless it is the only one."""
    served = max(1, len(kinds) - 1)
    return tuple(
        Gpu(index=index, kind=kind, service=SERVICES[index] if index < min(served, len(SERVICES)) else None)
        for index, kind in enumerate(kinds)
    )


def queue(gpus: int, window_s: float) -> tuple[Job, ...]:
    """Make the queue: enough of every size that some end, and that no GPU runs out of work."""
    scale = min(1.0, window_s / WINDOW_S)
    small, medium, large = (_scaled(size, scale) for size in SIZES)
    begin = [
        *(Job(name=f"small-{number}", size=small, priority=10) for number in range(1, gpus + 1)),
        *(Job(name=f"medium-{number}", size=medium, priority=5) for number in range(1, gpus + 1)),
        *(Job(name=f"large-{number}", size=large, priority=0) for number in range(1, gpus + 1)),
    ]
    late = [Job(name=f"urgent-{number}", size=small, priority=20, after_s=window_s * number / 4) for number in (1, 2)]
    return (*begin, *late)


def _scaled(size: Size, scale: float) -> Size:
    return size if size is LARGE else msgspec.structs.replace(size, batches=max(50, round(size.batches * scale)))


def plan(kinds: tuple[str, ...], *, window_s: float, simulated: bool) -> Plan:
    """Plan a run on GPUs of these kinds."""
    return Plan(
        gpus=fleet(kinds),
        jobs=queue(len(kinds), window_s),
        window_s=window_s,
        warm_up_s=max(8.0, 1.9 * window_s),
        simulated=simulated,
    )


def rates(service: Service, text: str) -> list[float]:
    """Rates of the sample day from the service's place in it on, in requests per second, before `rate_scale`."""
    day = [float(line) for line in text.splitlines() if line and not line.startswith("#")]
    begin = service.day_from_s % len(day)
    return day[begin:] + day[:begin]


def command(size: Size, *, batches: int | None = None) -> tuple[str, ...]:
    """Command of an offline program of this size."""
    script = str(WORKLOADS / "offline_job.py")
    count = size.batches if batches is None else batches
    return (sys.executable, script, "--size", size.name, "--batches", str(count), *size.arguments)


def spec(job: Job) -> dict[str, object]:
    """What is submitted: the payload's ``spec``, as any client writes it."""
    return {
        "command": list(command(job.size)),
        "gpu": {"memory_bytes": job.size.memory_gib * GIB},
        "profile_key": job.size.name,
        "priority": job.priority,
        "checkpoint": {"signal": "SIGUSR2", "grace_s": 5},
        "stop_grace_s": 5,
    }


def real_kinds() -> tuple[str, ...]:
    """Kinds of the GPUs that NVML finds here, by index; none where it finds none, or there is no driver."""
    try:
        return tuple(gpu.kind for gpu in hardware.find({}))
    except hardware.HardwareError:
        return ()
