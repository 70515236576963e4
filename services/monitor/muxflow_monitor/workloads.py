"""Online workloads as they are declared: in the settings, and in a file that ``muxflow online add`` writes."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from muxflow.contracts import Gpu
from muxflow_monitor.settings import OnlineWorkload


class DeclarationError(ValueError):
    """A workload is declared wrongly. The message is one line that names it."""


class Workload(msgspec.Struct, frozen=True, kw_only=True):
    """The online workload of one GPU."""

    name: str
    gpu: str
    """UUID."""
    match: str
    latency_target_ms: float | None = None

    def is_its(self, command_line: str) -> bool:
        """Whether a process with this command line belongs to it."""
        return re.search(self.match, command_line) is not None


def placed(declared: Mapping[str, OnlineWorkload], gpus: Iterable[Gpu]) -> dict[str, Workload]:
    """Find the GPU of each; gives them by its UUID. Raises `DeclarationError`."""
    uuids = {name: gpu.uuid for gpu in gpus for name in (gpu.uuid, str(gpu.index))}
    found: dict[str, Workload] = {}
    for name, workload in declared.items():
        uuid = uuids.get(str(workload.gpu))
        if uuid is None:
            known = ", ".join(sorted(uuids))
            raise DeclarationError(f"online workload {name}: there is no GPU {workload.gpu} here; there are {known}")
        if uuid in found:
            raise DeclarationError(f"online workload {name}: GPU {workload.gpu} has {found[uuid].name} already")
        found[uuid] = Workload(name=name, gpu=uuid, match=workload.match, latency_target_ms=workload.latency_target_ms)
    return found


class WorkloadFile:
    """``<state_dir>/online.toml``: one table per workload, as ``[monitor.online]`` has them. It need not be there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stamp: tuple[int, int] | None = None

    def changed(self) -> bool:
        """Whether it is another file than the last time this was asked."""
        try:
            found = self.path.stat()
            stamp = (found.st_mtime_ns, found.st_ino)
        except OSError:
            stamp = (0, 0)
        before, self._stamp = self._stamp, stamp
        return stamp != before

    def read(self) -> dict[str, OnlineWorkload]:
        """Read it. Raises `DeclarationError`."""
        try:
            with self.path.open("rb") as file:
                return msgspec.convert(tomllib.load(file), dict[str, OnlineWorkload])
        except FileNotFoundError:
            return {}
        except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as error:
            raise DeclarationError(f"{self.path}: {error}") from None
