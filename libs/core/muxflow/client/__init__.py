"""The client: submit jobs, follow them, ask about them.

async with Client.connect() as client:
    handle = await client.submit(JobSpec(name="hello", command=("echo", "hello"), gpu=GpuRequest(memory_bytes=2**30)))
    outcome = await handle.outcome()
"""

from __future__ import annotations

from muxflow.client.client import Client
from muxflow.client.dead_letters import DeadEntry
from muxflow.client.errors import AlreadyEnded, ClientError, NoAnswer, NotAllowed, NotConnected, NotFound, Rejected
from muxflow.client.event_feed import Received
from muxflow.client.handle import JobHandle, Outcome
from muxflow.client.profiles import Profiles

__all__ = [
    "AlreadyEnded",
    "Client",
    "ClientError",
    "DeadEntry",
    "JobHandle",
    "NoAnswer",
    "NotAllowed",
    "NotConnected",
    "NotFound",
    "Outcome",
    "Profiles",
    "Received",
    "Rejected",
]
