"""Finding out what has become of an attempt that nobody in this process has watched."""

from __future__ import annotations

import time

import structlog

from muxflow_executor.attempts import AttemptDirectory, Ended, ProcessRecord
from muxflow_executor.processes import alive, find_shim, kill_leftovers
from muxflow_executor.shim.records import boot_id

log = structlog.get_logger()


def recover(directory: AttemptDirectory) -> ProcessRecord | Ended:
    """Give back the shim if it lives, else how the attempt ended. Blocks until nothing of an ended attempt is left.

    An exit that nobody saw is recorded as lost. Raises OSError when that cannot be written.
    """
    ended = directory.ended()
    if ended is not None:
        return ended
    if directory.intent.boot_id != boot_id():
        return _lost(directory, "the node was rebooted")
    if directory.claim():
        return _lost(directory, "the executor was killed before it started")
    shim = directory.shim() or find_shim(directory.path)
    if shim is not None and alive(shim):
        return shim
    # It may have written the exit after we looked and before it died.
    ended = directory.ended()
    if ended is not None:
        return ended
    intent = directory.intent
    cgroup = intent.order.cgroup if intent.order is not None else None
    kill_leftovers(run_id=intent.run_id, program=directory.started(), cgroup=cgroup)
    return _lost(directory, directory.complaint() or "the shim was killed")


def _lost(directory: AttemptDirectory, why: str) -> Ended:
    started, stop = directory.started(), directory.stop_request()
    ended = Ended(
        lost=True,
        stopped_by=stop.cause if stop is not None else None,
        started_ns=started.time_ns if started is not None else 0,
        ended_ns=time.time_ns(),
        boot_id=boot_id(),
    )
    directory.record_ended(ended)
    log.warning("exit lost", attempt=str(directory.key), reason=why)
    return ended
