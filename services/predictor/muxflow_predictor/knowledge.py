"""What the predictor knows of jobs, services and kinds of GPU: the newest profiles."""

from __future__ import annotations

from muxflow.contracts.nodes import NodeState
from muxflow.contracts.profiles import CorunProfile, OfflineProfile, OnlineProfile
from muxflow_decisions.speed import MeasuredPair, measured_pair

_GIB = 2**30


class Knowledge:
    """The newest of everything, by name and kind."""

    def __init__(self) -> None:
        self._offline: dict[tuple[str, str], OfflineProfile] = {}
        self._online: dict[tuple[str, str], OnlineProfile] = {}
        self._answering: dict[tuple[str, str], OnlineProfile] = {}
        self._memory: dict[tuple[str, str], int] = {}
        """By node and kind; the smallest there."""

    def offline(self, key: str, kind: str) -> OfflineProfile | None:
        """The job alone; None while it was not measured well."""
        found = self._offline.get((key, kind))
        return found if found is not None and found.failure is None else None

    def online(self, workload: str, kind: str) -> OnlineProfile | None:
        """The service, as answers go by: it changes only when it has changed by much, so that they stay the same."""
        return self._answering.get((workload, kind))

    def services(self, kind: str) -> list[OnlineProfile]:
        """All services on this kind as they are now, by name."""
        return sorted(
            (profile for (_, its), profile in self._online.items() if its == kind),
            key=lambda profile: profile.workload,
        )

    def memory_bytes(self, kind: str) -> int | None:
        """Memory of a GPU of this kind, the smallest there is; None while no node has one."""
        return min((size for (_, its), size in self._memory.items() if its == kind), default=None)

    def take_offline(self, profile: OfflineProfile) -> bool:
        """Take one in; False if it changes no answer."""
        before = self._offline.get((profile.key, profile.gpu_kind))
        self._offline[profile.key, profile.gpu_kind] = profile
        return before is None or _figures(before) != _figures(profile)

    def take_online(self, profile: OnlineProfile) -> bool:
        """Take one in; False if it changes no answer."""
        name = profile.workload, profile.gpu_kind
        self._online[name] = profile
        before = self._answering.get(name)
        if before is not None and _coarse(before) == _coarse(profile):
            return False
        self._answering[name] = profile
        return True

    def take_node(self, state: NodeState) -> bool:
        """Take in which GPUs a node has; False if it changes no answer."""
        largest_first = sorted(state.gpus, key=lambda gpu: -gpu.memory_bytes)
        sizes = {(state.node, gpu.kind): gpu.memory_bytes for gpu in largest_first}
        if all(self._memory.get(name) == size for name, size in sizes.items()):
            return False
        self._memory |= sizes
        return True

    def row(self, corun: CorunProfile) -> MeasuredPair | None:
        """Make a row of a measurement, with what is known now."""
        return measured_pair(
            corun,
            self.offline(corun.offline_key, corun.gpu_kind),
            self._online.get((corun.workload, corun.gpu_kind)),
            gpu_memory_bytes=self.memory_bytes(corun.gpu_kind),
        )


def _figures(profile: OfflineProfile) -> tuple[object, ...]:
    return tuple(
        getattr(profile, name) for name in profile.__struct_fields__ if name not in {"id", "source", "time_ns"}
    )


def _coarse(profile: OnlineProfile) -> tuple[int | None, ...]:
    return (
        _steps(profile.activity_pct_mean, 2),
        _steps(profile.activity_pct_p99, 5),
        _steps(profile.memory_peak_bytes, _GIB),
    )


def _steps(value: float | None, step: float) -> int | None:
    return None if value is None else round(value / step)
