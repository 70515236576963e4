"""The queue as any client submits it: JSON on the bus with a user's credentials, and nothing of ours in between."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from nats.aio.client import Client

from muxflow_run.plan import Job, spec

TENANT: Final = "default"
_ACK_S: Final = 5.0


class QueueError(Exception):
    """A submission was not stored. The message has the server's words."""


class Queue:
    """One connection of a plain NATS client; used with ``async with``."""

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir
        self._client = Client()

    async def __aenter__(self) -> Self:
        connection = json.loads((self._state_dir / "connection.json").read_bytes())
        user = next(each for each in connection["credentials"] if each["role"] == "user" and each["bound_to"] == TENANT)
        await self._client.connect(
            connection["server"],
            nkeys_seed=str(self._state_dir / user["path"]),
            inbox_prefix=user["inbox_prefix"].encode(),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._client.close()

    async def submit(self, job: Job) -> None:
        """Publish one submission; returns when JetStream has stored it. Raises `QueueError`."""
        await self._publish(f"muxflow.jobs.submit.{TENANT}.{job.name}", {"spec": spec(job)})

    async def cancel(self, name: str) -> None:
        """Publish one cancellation. Raises `QueueError`."""
        await self._publish(f"muxflow.jobs.cancel.{TENANT}.{name}", {"reason": "the run is over"})

    async def _publish(self, subject: str, event: dict[str, Any]) -> None:
        answer = await self._client.request(subject, json.dumps(event).encode(), timeout=_ACK_S)
        ack = json.loads(answer.data)
        if "error" in ack:
            raise QueueError(f"{subject}: {ack['error']}")
