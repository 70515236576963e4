"""Puts runs side by side: what an ablation changes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from rich.table import Table

from muxflow_run.report import Report, decode
from muxflow_run.summary import number

_KEYS: Final = (
    "online_p99_ratio",
    "online_p99_ratio_unprotected",
    "alone_p99_ratio",
    "offline_share",
    "online_requests_lost",
)


def table(files: Sequence[Path]) -> Table:
    """Read runs; one column for each. Raises OSError, and msgspec.DecodeError for what is no run."""
    runs = {str(file): decode(file.read_bytes()) for file in files}
    made = Table(box=None, pad_edge=False)
    made.add_column("")
    for name in runs:
        made.add_column(name, justify="right")
    for key in _KEYS:
        made.add_row(key, *(number(run.figures.get(key)) for run in runs.values()))
    for name in ("normalized_throughput", "jobs_done", "freezes", "evictions"):
        made.add_row(f"protected {name}", *(number(getattr(run.phases["protected"], name)) for run in runs.values()))
    made.add_row("settings", *(_settings(run) for run in runs.values()))
    return made


def _settings(run: Report) -> str:
    return ", ".join(run.settings.overrides) or "defaults"
