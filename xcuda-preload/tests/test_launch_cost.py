"""What a launch within its grant costs: instructions, and calls to the driver."""

from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Node

_LAUNCHES = 5000


def _instructions(node: Node, program: Path, output: Path, *, duration_ns: int, preload: bool) -> list[tuple[str, int]]:
    """Of the program's own thread, for each way to launch."""
    code, names, errors = node.run(
        "valgrind", "--tool=callgrind", f"--callgrind-out-file={output}", "--combine-dumps=no",
        "--toggle-collect=counted", "--dump-after=counted",
        program, str(_LAUNCHES), str(duration_ns),
        preload=preload, extra={"STUB_TIMELESS": "1"},
    )  # fmt: skip
    assert code == 0, errors
    dumps = [output.with_name(f"{output.name}.{i + 1}").read_text() for i in range(len(names.split()))]
    totals = [re.search(r"^(?:summary|totals): (\d+)", dump, re.MULTILINE) for dump in dumps]
    return [(name, int(total[1])) for name, total in zip(names.split(), totals, strict=True) if total]


@pytest.mark.skipif(shutil.which("valgrind") is None, reason="instructions are counted by valgrind")
def test_a_launch_within_its_grant_costs_at_most_sixty_instructions(node: Node, programs: Path, tmp_path: Path) -> None:
    """Marks and the rest that comes with each group included; with the least that a launch counts for."""
    program = programs / "program_calls"
    with_it = _instructions(node, program, tmp_path / "with", duration_ns=1, preload=True)
    without = _instructions(node, program, tmp_path / "without", duration_ns=1, preload=False)
    added = [(name, (count - before) / _LAUNCHES) for (name, count), (_, before) in zip(with_it, without, strict=True)]
    assert len(added) == 11
    assert [(name, count) for name, count in added if not 40 < round(count) <= 60] == []


@pytest.mark.parametrize("arguments", ["", "streams=4", "threads=2"])
def test_launches_cost_few_calls_to_the_driver_once_they_are_learned(
    node: Node, programs: Path, arguments: str
) -> None:
    node.open_gate(window_us=2000)
    code, output, _ = node.run(programs / "program_launches", "20000", "5000", *arguments.split())
    assert code == 0
    assert 0 < float(output.split()[2]) <= 0.1
