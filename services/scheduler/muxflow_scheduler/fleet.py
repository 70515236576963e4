"""Nodes as the scheduler sees them: what they offer, and whether their executors hold their leases.

Times are readings of this process's monotonic clock; what they allow is decided by `muxflow_decisions.lease`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable

import msgspec
import structlog

from muxflow.bus import Bus, BusError, Entry, Message, Reader, Removal, WrongLastSequence
from muxflow.contracts import Gpu, NodeLease, NodeState, decode_token
from muxflow.contracts.catalogue import BUCKET_NODE_LEASES, NODES_STATE
from muxflow_decisions import lease
from muxflow_decisions.lease import LeaseTerms, Watch
from muxflow_scheduler.desired import GpuKey

log = structlog.get_logger()


class Node:
    """One node, as far as it is known."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.state: NodeState | None = None
        self.session = ""
        """The lease session it is in; empty while none is known or after it was lost."""
        self.watch: Watch = lease.watch(time.monotonic_ns())
        self.over = False
        """Whether it has been declared lost since it was last seen."""

    @property
    def gpus(self) -> tuple[Gpu, ...]:
        """GPUs it has told of."""
        return self.state.gpus if self.state else ()


class Fleet:
    """All nodes. `on_change` is called when work may be placed that could not be before, and `on_sessions_over(node)`
    when no attempt placed on the node in any but its present session can be alive.
    """

    def __init__(
        self, bus: Bus, terms: LeaseTerms, *, on_change: Callable[[], None], on_sessions_over: Callable[[str], None]
    ) -> None:
        self._bus = bus
        self._bucket = bus.kv(BUCKET_NODE_LEASES)
        self._terms = terms
        self._on_change = on_change
        self._on_sessions_over = on_sessions_over
        self._readers: list[Reader] = []
        self.nodes: dict[str, Node] = {}

    async def load(self) -> None:
        """Learn of every node there is, and go on listening."""
        self._readers.append(await self._bus.read(NODES_STATE, self._described, start="last"))
        self._readers.append(self._bucket.watch(self._leased))
        for reader in self._readers:
            await reader.caught_up()

    async def close(self) -> None:
        """Stop listening."""
        for reader in self._readers:
            await reader.stop()

    def node(self, name: str) -> Node:
        """The node of this name, new if it was never heard of."""
        if name not in self.nodes:
            self.nodes[name] = Node(name)
        return self.nodes[name]

    def session_of(self, name: str) -> str:
        """The node's present lease session; empty if there is none."""
        return self.node(name).session

    def alive(self, node: Node) -> bool:
        """Whether new work may be placed there."""
        return bool(node.session) and self.silence_ns(node) < self._terms.duration_ns

    def silence_ns(self, node: Node) -> int:
        """Time since its lease was last seen renewed."""
        return time.monotonic_ns() - node.watch.since_ns

    def open_gpus(self) -> list[tuple[Node, Gpu]]:
        """GPUs of nodes that take work, whether or not a job is on them."""
        return [
            (node, gpu)
            for node in self.nodes.values()
            if node.state is not None and not node.state.draining and self.alive(node)
            for gpu in node.gpus
        ]

    def gpu(self, key: GpuKey) -> Gpu | None:
        """Look up one GPU."""
        node = self.nodes.get(key.node)
        return next((gpu for gpu in node.gpus if gpu.uuid == key.gpu), None) if node else None

    async def patrol(self) -> None:
        """Declare nodes lost whose silence has lasted long enough; runs until cancelled."""
        while True:
            await asyncio.sleep(min(1.0, self._terms.duration_ns / 8e9))
            for node in list(self.nodes.values()):
                if self.silence_ns(node) >= self._terms.duration_ns:
                    with contextlib.suppress(BusError):  # looked at again in the next round
                        await self._examine(node)

    async def _examine(self, node: Node) -> None:
        """See whether a silent node's lease is still there, and fence it once that is allowed."""
        now_ns = time.monotonic_ns()
        if node.watch.gone_ns is None:
            try:
                entry = await self._bucket.get(self._bucket.key(node=node.name))
            except msgspec.DecodeError:  # nobody can renew it: it goes by its TTL
                return
            if entry is None:
                node.watch = lease.gone(node.watch, now_ns=now_ns)
            else:
                self._seen(node, entry.value, entry.revision)
        session = node.session
        if node.over or not lease.may_fence(self._terms, node.watch, now_ns) or not await self._fence(node):
            return
        if node.session != session:
            return  # it came back while it was being fenced
        log.warning("node lost", node=node.name, session=session)
        node.session = ""
        node.over = True
        self._on_sessions_over(node.name)

    async def _fence(self, node: Node) -> bool:
        """Make sure that the lease session can never be renewed; False if it was renewed meanwhile."""
        if node.watch.gone_ns is not None or node.watch.revision is None:
            try:
                entry = await self._bucket.get(self._bucket.key(node=node.name))
            except msgspec.DecodeError:
                return False
            if entry is not None:
                self._seen(node, entry.value, entry.revision)
            return entry is None
        try:
            await self._bucket.delete(self._bucket.key(node=node.name), last=node.watch.revision)
        except WrongLastSequence:
            return False  # the next round finds out whether it was renewed or has expired
        return True

    def _described(self, message: Message[NodeState]) -> None:
        node = self.node(message.event.node)
        node.state = message.event
        self._on_change()

    def _leased(self, entry: Entry[NodeLease] | Removal) -> None:
        node = self.node(decode_token(entry.key))
        if isinstance(entry, Removal):
            node.watch = lease.gone(node.watch, now_ns=time.monotonic_ns())
        else:
            self._seen(node, entry.value, entry.revision)

    def _seen(self, node: Node, value: NodeLease, revision: int) -> None:
        if node.watch.revision is not None and revision <= node.watch.revision:
            return
        was_alive = self.alive(node)
        node.watch = lease.renewed(node.watch, revision=revision, now_ns=time.monotonic_ns())
        node.over = False
        if value.session != node.session:
            log.info("node joined", node=node.name, session=value.session)
            node.session = value.session
            self._on_sessions_over(node.name)
        if not was_alive:
            self._on_change()
