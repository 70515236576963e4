"""What the records of the jobs on a GPU make of that GPU's desired state."""

from __future__ import annotations

from collections.abc import Iterable

from muxflow.contracts import Attempt, GpuDecision, JobRecord, JobState, Launch, Placement, Slot, encode_token


def decide(
    records: Iterable[JobRecord], *, node: str, gpu: str, session: str, term: int, generation: int, cause: str
) -> GpuDecision:
    """Derive the whole wish for one GPU from the committed records; records placed elsewhere are skipped.

    `session` is the node's present lease session. Its id is a function of GPU, term and generation.
    """
    slots: list[Slot] = []
    withdrawn: list[Attempt] = []
    for record in records:
        placement = record.placement
        if placement is None or (placement.node, placement.gpu, placement.session) != (node, gpu, session):
            continue
        if record.state is JobState.STOPPING:
            withdrawn.append(Attempt(tenant=record.tenant, job=record.job, attempt=record.attempt))
        else:
            slots.append(_slot(record, placement))
    return GpuDecision(
        id=f"{encode_token(node)}.{encode_token(gpu)}.{term}.{generation}",
        node=node,
        gpu=gpu,
        term=term,
        generation=generation,
        session=session,
        slots=tuple(sorted(slots, key=lambda slot: slot.key)),
        withdrawn=tuple(sorted(withdrawn)),
        cause=cause,
    )


def _slot(record: JobRecord, placement: Placement) -> Slot:
    return Slot(
        tenant=record.tenant,
        job=record.job,
        attempt=record.attempt,
        submission_id=record.submission_id,
        purpose=placement.purpose,
        memory_quota_bytes=record.spec.gpu.memory_bytes,
        sm_share_pct=placement.sm_share_pct,
        profile_key=record.spec.measured_as,
        launch=Launch.of(record.spec),
    )
