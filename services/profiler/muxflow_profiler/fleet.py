"""What telemetry is about: the kind of each GPU, who is served on it, and which attempts are there."""

from __future__ import annotations

from typing import NamedTuple

from muxflow.contracts import Attempt, GpuDecision, NodeState, OnlineState, Slot


class GpuKey(NamedTuple):
    """One GPU."""

    node: str
    gpu: str


class Served(NamedTuple):
    """Who was served on a GPU at some time."""

    known: bool
    workload: str | None = None


class Gone(NamedTuple):
    """An attempt that is no longer wanted, or is over."""

    slot: Slot
    withdrawn: bool
    """Somebody wanted it gone, rather than that it came to its end."""


class Fleet:
    """The newest word on every GPU."""

    def __init__(self) -> None:
        self._kinds: dict[GpuKey, str] = {}
        self._online: dict[GpuKey, OnlineState] = {}
        self._slots: dict[GpuKey, dict[Attempt, Slot]] = {}

    def take_node(self, state: NodeState) -> None:
        """Learn the kinds of a node's GPUs."""
        for gpu in state.gpus:
            self._kinds[GpuKey(state.node, gpu.uuid)] = gpu.kind

    def take_online(self, state: OnlineState) -> None:
        """Learn who is served on a GPU."""
        self._online[GpuKey(state.node, state.gpu)] = state

    def take_decision(self, decision: GpuDecision) -> list[Gone]:
        """Learn which attempts are on a GPU; gives those that were, and are not any more."""
        key = GpuKey(decision.node, decision.gpu)
        slots = {slot.key: slot for slot in decision.slots}
        before = self._slots.get(key, {})
        self._slots[key] = slots
        return [
            Gone(slot, withdrawn=attempt in decision.withdrawn)
            for attempt, slot in before.items()
            if attempt not in slots
        ]

    def kind(self, key: GpuKey) -> str | None:
        """None for a GPU that no node has offered yet."""
        return self._kinds.get(key)

    def slot(self, key: GpuKey, attempt: Attempt) -> Slot | None:
        """None for an attempt that is not wanted there, or not any more."""
        return self._slots.get(key, {}).get(attempt)

    def served(self, key: GpuKey, time_ns: int) -> Served:
        """Who was served there at a time of the node's clock. What is told is only since when that has been so."""
        state = self._online.get(key)
        if state is None or time_ns < state.since_ns:
            return Served(known=False)
        return Served(known=True, workload=state.workload)
