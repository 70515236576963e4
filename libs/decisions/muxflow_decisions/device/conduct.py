"""Whether offline jobs keep to the rules that protect the online side, as far as the driver tells.

xCUDA holds the processes that it is in, and counts the allocations that they make. Two things escape it:

- a process of a job that runs without it: it launches past a frozen gate, and nobody counts its memory;
- memory for which no allocation call is made: code and data of modules, heaps, stacks.

The driver shows both: who has a context, and how much memory each process has. Either is a *breach* once it has lasted,
and the whole job is stopped for it: what it has broken is what its online neighbour was promised.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, Final

import msgspec
from msgspec import Meta
from msgspec.structs import replace

from muxflow_decisions.device.policy import DelayS, Mebibytes

_SECOND_NS: Final = 1_000_000_000
_MIB: Final = 2**20
_GIB: Final = 2**30


class ConductPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much of it is let pass."""

    unprotected_after_s: DelayS = 1.0
    """A process claims its slot before its context, so that this only bridges looks that do not fall together. Twice
    the time from one list of processes to the next."""
    memory_after_s: DelayS = 5.0
    memory_tolerance_mib: Mebibytes = 1024
    """Beyond the quota, for each process that is on the GPU, for what an honest one cannot count: kernels that
    libraries load as they are first used, and what a context takes beyond its charge."""
    gap_s: Annotated[float, Meta(gt=0, le=600)] = 2.0
    """Looks further apart than this prove nothing about the time between."""


class Resident(msgspec.Struct, frozen=True, kw_only=True):
    """A living process of a job, with a context on the GPU."""

    owner: int
    """Its name for good."""
    pid: int
    name: str
    held: bool
    """Whether it has a slot in the job's page: xCUDA is in it."""
    memory_bytes: int | None
    """Null where the driver does not say."""


class JobSight(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt on the GPU, at one look."""

    job: str
    """The attempt, by the name of its directory."""
    quota_bytes: int | None
    """Null: none."""
    residents: tuple[Resident, ...] = ()
    """None where nobody can tell."""


class Breach(msgspec.Struct, frozen=True, kw_only=True):
    """An attempt that is to be stopped."""

    job: str
    cause: str
    """What it has done, in words for the person whose job it is."""


class ConductMemory(msgspec.Struct, frozen=True, kw_only=True):
    """What is remembered of one GPU. A new monitor begins with an empty one."""

    looked_ns: int | None = None
    loose: dict[int, int] = {}
    """Since when each process is seen without xCUDA, by owner."""
    beyond: dict[str, int] = {}
    """Since when each attempt is seen with more memory than it may have."""
    breaches: tuple[Breach, ...] = ()
    """Attempts that are there and have broken a rule, in the order in which they did; nothing takes one back."""


def advance(memory: ConductMemory, jobs: Iterable[JobSight], *, now_ns: int, policy: ConductPolicy) -> ConductMemory:
    """Take in one look at all attempts on the GPU."""
    gap = memory.looked_ns is None or now_ns - memory.looked_ns > policy.gap_s * _SECOND_NS
    known = replace(memory, loose={}, beyond={}) if gap else memory
    seen = {job.job: job for job in jobs}
    loose = {each.owner: known.loose.get(each.owner, now_ns) for job in seen.values() for each in _loose(job)}
    beyond = {name: known.beyond.get(name, now_ns) for name, job in seen.items() if _excess(job, policy)}
    breaches = {breach.job: breach for breach in memory.breaches if breach.job in seen}
    for name, job in seen.items():
        if name not in breaches and (cause := _cause(job, loose, beyond, now_ns, policy)) is not None:
            breaches[name] = Breach(job=name, cause=cause)
    return ConductMemory(looked_ns=now_ns, loose=loose, beyond=beyond, breaches=tuple(breaches.values()))


def _loose(job: JobSight) -> Iterator[Resident]:
    return (resident for resident in job.residents if not resident.held)


def _used_bytes(job: JobSight) -> int:
    """Add up what the driver tells. Of a process of which it tells nothing, nothing is held against the job."""
    return sum(resident.memory_bytes for resident in job.residents if resident.memory_bytes is not None)


def _excess(job: JobSight, policy: ConductPolicy) -> bool:
    if job.quota_bytes is None:
        return False
    tolerance_mib = policy.memory_tolerance_mib * max(1, len(job.residents))
    return _used_bytes(job) > job.quota_bytes + tolerance_mib * _MIB


def _cause(
    job: JobSight, loose: dict[int, int], beyond: dict[str, int], now_ns: int, policy: ConductPolicy
) -> str | None:
    for resident in _loose(job):
        if now_ns - loose[resident.owner] >= policy.unprotected_after_s * _SECOND_NS:
            return (
                f"process {resident.pid} ({resident.name}) is on the GPU without xCUDA: keep LD_PRELOAD and XCUDA_* in "
                "the environment of what the job starts (if they are kept: xCUDA needs /proc and a free descriptor)"
            )
    if job.job in beyond and now_ns - beyond[job.job] >= policy.memory_after_s * _SECOND_NS:
        return (
            f"it uses {_used_bytes(job) / _GIB:.1f} GiB on the GPU, {(job.quota_bytes or 0) / _GIB:.1f} GiB were asked "
            "for: contexts, modules and heaps count too"
        )
    return None
