"""``nodes``: which nodes there are, and what is on their GPUs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from muxflow.cli import gpus, output
from muxflow.cli.ages import duration
from muxflow.cli.command import Session, command
from muxflow.sizes import format_size

if TYPE_CHECKING:
    from muxflow.contracts import GpuSummary, NodeSummary


def add_to(app: typer.Typer) -> None:
    """Add these commands."""
    command(app, "muxflow nodes")(nodes)


async def nodes(session: Session) -> None:
    """List nodes, their GPUs, and the jobs on them."""
    async with session.connect() as client:
        found = await client.nodes()
    if session.as_json:
        output.json(found)
    elif not found:
        output.line("no nodes")
    else:
        rows = [_row(node, gpu) for node in found for gpu in (node.gpus or (None,))]
        output.table(["NODE", "STATE", "GPU", "MEMORY", "JOB"], rows, wide="JOB")


def _row(node: NodeSummary, gpu: GpuSummary | None) -> list[output.Cell]:
    state = output.state(_state(node))
    if gpu is None:
        return [node.node, state, "-", "-", "-"]
    job = f"{gpu.tenant}/{gpu.job}#{gpu.attempt}" if gpu.job else "-"
    return [node.node, state, gpus.name(gpu.gpu), format_size(gpu.gpu.memory_bytes), job]


def _state(node: NodeSummary) -> str:
    if not node.alive:
        return "lost" if node.lease_age_s is None else f"lost {duration(node.lease_age_s)}"
    return "draining" if node.draining else "alive"
