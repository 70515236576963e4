"""The newest decision of each GPU, and the highest versions ever obeyed: an older one has no say after a newer one."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec
import structlog

from muxflow.contracts import GpuDecision
from muxflow_decisions.node import newer
from muxflow_executor.attempts import read_record, write_record

log = structlog.get_logger()


class Obeyed(msgspec.Struct, frozen=True, kw_only=True):
    """Highest term and generation seen per GPU, within one lease session."""

    session: str = ""
    versions: dict[str, tuple[int, int]] = {}


class Desired:
    """What shall run on this node."""

    def __init__(self, gpus: Iterable[str], path: Path) -> None:
        self._gpus = tuple(gpus)
        self._path = path
        self._obeyed = read_record(path, Obeyed) or Obeyed()
        self.decisions: dict[str, GpuDecision | None] = dict.fromkeys(self._gpus)

    def begin(self, session: str) -> None:
        """Read everything anew. In a new session versions count anew: a decision for an old one starts nothing."""
        self.decisions = dict.fromkeys(self._gpus)
        if self._obeyed.session != session:
            self._obeyed = Obeyed(session=session)

    def take(self, decision: GpuDecision) -> bool:
        """Take in a decision; False when a newer one has been obeyed before."""
        before = self.decisions.get(decision.gpu)
        obeyed = self._obeyed.versions.get(decision.gpu, (0, 0))
        if not newer(before, decision) or decision.version < obeyed:
            log.info("older decision ignored", gpu=decision.gpu, version=decision.version, obeyed=obeyed)
            return False
        self.decisions[decision.gpu] = decision if decision.gpu in self._gpus else _refused(decision)
        versions = {**self._obeyed.versions, decision.gpu: decision.version}
        self._obeyed = msgspec.structs.replace(self._obeyed, versions=versions)
        return True

    def save(self) -> None:
        """Write down what has been obeyed. Raises OSError."""
        write_record(self._path, self._obeyed)


def _refused(decision: GpuDecision) -> GpuDecision:
    """Answer for slots on a GPU that is not here (any more): they are declined, not awaited for ever."""
    log.warning("decision for a GPU that this node does not have", gpu=decision.gpu)
    withdrawn = (*decision.withdrawn, *(slot.key for slot in decision.slots))
    return msgspec.structs.replace(decision, slots=(), withdrawn=withdrawn, cause="the node has no such GPU")
