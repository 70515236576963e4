"""The desired state of every GPU, published as the newest message of its subject.

Each publication carries the last sequence of its subject as a condition, so that a scheduler which has been superseded
cannot overwrite what its successor has published. One publication per GPU is under way at a time; changes that come
meanwhile go out together in the next.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import NamedTuple

import msgspec

from muxflow.bus import Bus, Message, RawMessage, WrongLastSequence
from muxflow.contracts import GpuDecision, JobRecord
from muxflow.contracts.catalogue import DECISIONS
from muxflow_decisions.lifecycle import decide
from muxflow_scheduler.ledger import Superseded


class GpuKey(NamedTuple):
    """One GPU of one node."""

    node: str
    gpu: str


class DesiredState:
    """Writes the decisions of one term. `on_failure` is called if one can't be published."""

    def __init__(
        self,
        bus: Bus,
        term: int,
        *,
        records_on: Callable[[GpuKey], Iterable[JobRecord]],
        session_of: Callable[[str], str],
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self._bus = bus
        self._term = term
        self._records_on = records_on
        self._session_of = session_of
        self._on_failure = on_failure
        self._sequences: dict[GpuKey, int] = {}
        self._generations: dict[GpuKey, int] = {}
        self._causes: dict[GpuKey, str] = {}
        self._writers: dict[GpuKey, asyncio.Task[None]] = {}
        self.published = 0

    async def load(self) -> None:
        """Read which GPUs have a decision, by whomever. What it says does not matter, nor whether it can be read."""

        def note(message: Message[GpuDecision] | RawMessage, _: msgspec.DecodeError | None = None) -> None:
            key = GpuKey(message.names["node"], message.names["gpu"])
            self._sequences[key] = message.stream_sequence or 0

        reader = await self._bus.read(DECISIONS, note, start="last", on_invalid=note)
        await reader.caught_up()
        await reader.stop()

    @property
    def known(self) -> tuple[GpuKey, ...]:
        """GPUs that have a decision."""
        return tuple(self._sequences)

    def change(self, key: GpuKey, cause: str) -> None:
        """Have the GPU's desired state published anew. What it is, is asked for at that moment."""
        self._causes[key] = cause
        if key not in self._writers:
            task = self._writers[key] = asyncio.get_running_loop().create_task(self._write(key))
            task.add_done_callback(self._written)

    def close(self) -> None:
        """Give up what is not published."""
        for task in self._writers.values():
            task.cancel()

    async def _write(self, key: GpuKey) -> None:
        try:
            while (cause := self._causes.pop(key, None)) is not None:
                self._generations[key] = self._generations.get(key, 0) + 1
                decision = decide(
                    self._records_on(key),
                    node=key.node,
                    gpu=key.gpu,
                    session=self._session_of(key.node),
                    term=self._term,
                    generation=self._generations[key],
                    cause=cause,
                )
                ack = await self._bus.publish(
                    DECISIONS, decision, expect_last=self._sequences.get(key, 0), node=key.node, gpu=key.gpu
                )
                self._sequences[key] = ack.sequence
                self.published += 1
        except WrongLastSequence as error:
            raise Superseded(f"the decision for {key.gpu} on {key.node} was published by somebody else") from error
        finally:
            del self._writers[key]

    def _written(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._on_failure(error)
