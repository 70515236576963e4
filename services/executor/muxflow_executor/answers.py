"""Answers to questions about this node."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final

from muxflow.bus import Message, QueryError
from muxflow.contracts import ALL_TENANTS, Attempt, LogsQuery, LogsReply
from muxflow_executor.attempts import AttemptStore
from muxflow_executor.output import Piece, read_output
from muxflow_executor.process_runner import ProcessRunner

_LOOKS: Final = 3
"""An attempt's directory moves once, when it is forgotten."""


class Answers:
    """Reads what the node knows; changes nothing."""

    def __init__(self, store: AttemptStore, runner: ProcessRunner) -> None:
        self._store = store
        self._runner = runner

    async def logs(self, message: Message[LogsQuery]) -> LogsReply:
        """Give a piece of a job's output. The tenant stands in the subject, where permissions hold on to it."""
        query = message.event
        tenant = await self._tenant(message.names["tenant"], query.job)
        for _ in range(_LOOKS):
            found = await asyncio.to_thread(self._store.output_of, tenant, query.job, query.attempt)
            if found is None:
                which = f"attempt {query.attempt} of job" if query.attempt is not None else "job"
                raise QueryError(404, f"no output of {which} {query.job!r} of tenant {tenant!r} is on this node")
            number, directory = found
            run = self._runner.runs.get(Attempt(tenant=tenant, job=query.job, attempt=number))
            running = run is not None and run.ended is None  # looked at first: what it printed last is then not missed
            piece = await asyncio.to_thread(read_piece, directory, query)
            if piece is not None:
                return LogsReply(attempt=number, data=piece.data, offset=piece.offset, end=piece.end, running=running)
        raise QueryError(500, f"the output of job {query.job!r} was moved again and again; ask once more")

    async def _tenant(self, tenant: str, job: str) -> str:
        if tenant != ALL_TENANTS:
            return tenant
        found = await asyncio.to_thread(self._store.tenants_with, job)
        if len(found) > 1:
            raise QueryError(400, f"several tenants have a job {job!r} here: {', '.join(sorted(found))}; ask for one")
        return next(iter(found), tenant)


def read_piece(directory: Path, query: LogsQuery) -> Piece | None:
    """Read a piece; None if the directory was moved meanwhile, so that what was read may be too little."""
    try:
        piece = read_output(directory, offset=query.offset, limit_bytes=query.limit_bytes)
    except FileNotFoundError:
        return None
    return piece if directory.is_dir() else None
