"""Answers to questions about jobs and nodes, from the state of the leading scheduler."""

from __future__ import annotations

import time

from muxflow.bus import Message, QueryError
from muxflow.contracts import (
    ALL_TENANTS,
    GpuSummary,
    JobQuery,
    JobRecord,
    JobReply,
    JobsQuery,
    JobsReply,
    JobState,
    JobSummary,
    NodesQuery,
    NodesReply,
    NodeSummary,
)
from muxflow_scheduler.desired import GpuKey
from muxflow_scheduler.fleet import Node
from muxflow_scheduler.term import Term


class Answers:
    """Handlers of the scheduler's questions."""

    def __init__(self, term: Term) -> None:
        self._term = term

    async def jobs(self, message: Message[JobsQuery]) -> JobsReply:
        """List jobs of one tenant, or of all for operators."""
        query, tenant = message.event, message.names["tenant"]
        matching = [
            record
            for record in self._term.ledger
            if tenant in (record.tenant, ALL_TENANTS) and (not query.states or record.state in query.states)
        ]
        matching.sort(key=lambda record: (-record.submitted_ns, record.tenant, record.job))
        return JobsReply(jobs=tuple(map(self._summary, matching[: query.limit])), total=len(matching))

    async def job(self, message: Message[JobQuery]) -> JobReply:
        """Tell everything about one job. QueryError 404 if there is none, 500 if its record is damaged."""
        tenant, job = message.names["tenant"], message.event.job
        record = self._term.ledger.get((tenant, job))
        if record is None and (damage := await self._term.ledger.damage((tenant, job))):
            raise QueryError(500, damage)
        if record is None:
            raise QueryError(404, f"there is no job {job!r} in tenant {tenant!r}")
        waits = record.state is JobState.PENDING
        return JobReply(
            record=record,
            waiting=self._term.why_waiting(record) if waits else None,
            queue_position=self._term.queue_position(record) if waits else None,
        )

    async def nodes(self, _message: Message[NodesQuery]) -> NodesReply:
        """List nodes and what is on their GPUs."""
        nodes = sorted(self._term.fleet.nodes.values(), key=lambda node: node.name)
        return NodesReply(nodes=tuple(self._node(node) for node in nodes))

    def _summary(self, record: JobRecord) -> JobSummary:
        reason = self._term.why_waiting(record) if record.state is JobState.PENDING else record.reason
        return JobSummary(
            tenant=record.tenant,
            job=record.job,
            state=record.state,
            reason=reason,
            attempt=record.attempt,
            priority=record.spec.priority,
            memory_bytes=record.spec.gpu.memory_bytes,
            placement=record.placement,
            submitted_ns=record.submitted_ns,
            changed_ns=record.changed_ns,
            last_exit=record.last_exit,
        )

    def _node(self, node: Node) -> NodeSummary:
        seen = node.watch.revision is not None
        return NodeSummary(
            node=node.name,
            alive=self._term.fleet.alive(node),
            lease_age_s=(time.monotonic_ns() - node.watch.since_ns) / 1e9 if seen else None,
            boot_id=node.state.boot_id if node.state else "",
            labels=node.state.labels if node.state else {},
            runners=node.state.runners if node.state else (),
            gpus=self._gpus(node),
            draining=node.state.draining if node.state else False,
        )

    def _gpus(self, node: Node) -> tuple[GpuSummary, ...]:
        summaries = []
        for gpu in node.gpus:
            occupants = sorted(self._term.occupancy.on(GpuKey(node.name, gpu.uuid)))
            record = self._term.ledger.get(occupants[0]) if occupants else None
            if record is None:
                summaries.append(GpuSummary(gpu=gpu))
            else:
                summaries.append(
                    GpuSummary(
                        gpu=gpu,
                        tenant=record.tenant,
                        job=record.job,
                        attempt=record.attempt,
                        job_state=record.state,
                    )
                )
        return tuple(summaries)
