"""Which jobs are on which GPU, according to their records."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from muxflow.contracts import JobRecord
from muxflow_scheduler.desired import GpuKey
from muxflow_scheduler.ledger import JobKey, key_of


class Occupancy:
    """An index over records, kept up by `update`."""

    def __init__(self) -> None:
        self._on_gpu: dict[GpuKey, set[JobKey]] = defaultdict(set)
        self._place_of: dict[JobKey, GpuKey] = {}

    def update(self, record: JobRecord) -> None:
        """Take in the newest record of a job."""
        key = key_of(record)
        old = self._place_of.pop(key, None)
        if old is not None:
            self._on_gpu[old].discard(key)
        if record.placement is not None:
            place = GpuKey(record.placement.node, record.placement.gpu)
            self._place_of[key] = place
            self._on_gpu[place].add(key)

    def on(self, gpu: GpuKey) -> frozenset[JobKey]:
        """Jobs on one GPU, stopping ones included."""
        return frozenset(self._on_gpu.get(gpu, ()))

    def free(self, gpu: GpuKey) -> bool:
        """Whether no job is there."""
        return not self._on_gpu.get(gpu)

    def on_node(self, node: str) -> Iterator[tuple[GpuKey, JobKey]]:
        """Every job on a node."""
        for place, keys in list(self._on_gpu.items()):
            if place.node == node:
                for key in tuple(keys):
                    yield place, key

    def gpus(self) -> tuple[GpuKey, ...]:
        """GPUs with a job."""
        return tuple(place for place, keys in self._on_gpu.items() if keys)
