"""Answers to questions about jobs and nodes, from the state of the leading scheduler."""

from __future__ import annotations

import time

from msgspec.structs import replace

from muxflow.bus import Message, QueryError
from muxflow.contracts import (
    ALL_TENANTS,
    DevicesQuery,
    DevicesReply,
    DeviceSummary,
    Gpu,
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
    QueuedJob,
    QueueQuery,
    QueueReply,
)
from muxflow_scheduler.desired import GpuKey
from muxflow_scheduler.explaining import Explaining
from muxflow_scheduler.fleet import Node
from muxflow_scheduler.ledger import key_of
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
        explaining = Explaining(self._term)
        return JobsReply(
            jobs=tuple(_summary(record, explaining) for record in matching[: query.limit]), total=len(matching)
        )

    async def job(self, message: Message[JobQuery]) -> JobReply:
        """Tell everything about one job. QueryError 404 if there is none, 500 if its record is damaged."""
        tenant, job = message.names["tenant"], message.event.job
        record = self._term.ledger.get((tenant, job))
        if record is None and (damage := await self._term.ledger.damage((tenant, job))):
            raise QueryError(500, damage)
        if record is None:
            raise QueryError(404, f"there is no job {job!r} in tenant {tenant!r}")
        explaining = Explaining(self._term)
        waits = record.state is JobState.PENDING
        return JobReply(
            record=record,
            waiting=explaining.why_waiting(record) if waits else None,
            queue_position=explaining.positions.get((tenant, job)) if waits else None,
            profile=explaining.profile(record),
            speed=explaining.speed(record),
            options=explaining.options(record),
        )

    async def queue(self, message: Message[QueueQuery]) -> QueueReply:
        """List waiting jobs of one tenant, or of all for operators, who are told of the solves too."""
        query, tenant = message.event, message.names["tenant"]
        explaining = Explaining(self._term)
        waiting = [
            record
            for key in explaining.positions
            if tenant in (key[0], ALL_TENANTS) and (record := self._term.ledger.get(key)) is not None
        ]
        return QueueReply(
            jobs=tuple(_queued(record, explaining) for record in waiting[: query.limit]),
            total=len(waiting),
            solves=tuple(self._term.placing.solves) if tenant == ALL_TENANTS else (),
        )

    async def nodes(self, _message: Message[NodesQuery]) -> NodesReply:
        """List nodes and what is on their GPUs."""
        return NodesReply(nodes=tuple(self._node(node) for node in self._nodes()))

    async def devices(self, _message: Message[DevicesQuery]) -> DevicesReply:
        """List GPUs, how their offline side is, and who is on them."""
        return DevicesReply(devices=tuple(self._device(node, gpu) for node in self._nodes() for gpu in node.gpus))

    def _nodes(self) -> list[Node]:
        return sorted(self._term.fleet.nodes.values(), key=lambda node: node.name)

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
            record = self._occupant(node, gpu)
            state = self._term.devices.state(GpuKey(node.name, gpu.uuid))
            summaries.append(
                GpuSummary(
                    gpu=gpu,
                    tenant=record.tenant if record else None,
                    job=record.job if record else None,
                    attempt=record.attempt if record else None,
                    job_state=record.state if record else None,
                    budget_permille=state.budget_permille if state else None,
                )
            )
        return tuple(summaries)

    def _device(self, node: Node, gpu: Gpu) -> DeviceSummary:
        key = GpuKey(node.name, gpu.uuid)
        watched = node.state.watched if node.state else False
        state = self._term.devices.state(key) if watched else None
        online = self._term.devices.online(key) if watched else None
        summary = DeviceSummary(
            node=node.name,
            gpu=gpu,
            alive=self._term.fleet.alive(node),
            watched=watched,
            closed=self._term.offers.why_closed(node, gpu),
            next_sm_share_pct=self._term.offers.sm_share(key),
        )
        if state is not None:
            summary = replace(
                summary,
                state=state.state,
                since_ns=state.since_ns,
                cause=state.cause,
                recovery=state.recovery,
                epoch=state.epoch,
                budget_permille=state.budget_permille,
                sample=state.sample,
                sampled_ns=state.time_ns if state.sample else 0,
            )
        if online is not None:
            summary = replace(
                summary,
                workload=online.workload,
                latency_target_ms=online.latency_target_ms,
                activity_peak_pct=online.activity_peak_pct,
            )
            if (profile := self._term.profiles.online(online.workload, gpu.kind)) is not None:
                summary = replace(
                    summary,
                    forecast_peak_pct=profile.forecast_peak_pct,
                    forecast_until_ns=profile.forecast_until_ns,
                )
        if (record := self._occupant(node, gpu)) is not None:
            summary = replace(
                summary,
                tenant=record.tenant,
                job=record.job,
                attempt=record.attempt,
                job_state=record.state,
                sm_share_pct=record.placement.sm_share_pct if record.placement else None,
            )
        return summary

    def _occupant(self, node: Node, gpu: Gpu) -> JobRecord | None:
        """The job on a GPU, if any."""
        occupants = sorted(self._term.occupancy.on(GpuKey(node.name, gpu.uuid)))
        return self._term.ledger.get(occupants[0]) if occupants else None


def _summary(record: JobRecord, explaining: Explaining) -> JobSummary:
    return JobSummary(
        tenant=record.tenant,
        job=record.job,
        state=record.state,
        reason=explaining.why_waiting(record) if record.state is JobState.PENDING else record.reason,
        attempt=record.attempt,
        priority=record.spec.priority,
        memory_bytes=record.spec.gpu.memory_bytes,
        placement=record.placement,
        submitted_ns=record.submitted_ns,
        changed_ns=record.changed_ns,
        last_exit=record.last_exit,
    )


def _queued(record: JobRecord, explaining: Explaining) -> QueuedJob:
    return QueuedJob(
        tenant=record.tenant,
        job=record.job,
        position=explaining.positions[key_of(record)],
        priority=record.spec.priority,
        memory_bytes=record.spec.gpu.memory_bytes,
        kinds=record.spec.gpu.kinds,
        since_ns=record.changed_ns,
        waiting=explaining.why_waiting(record),
        profiled=record.profiled,
    )
