"""The memory of a job's processes is right whoever of them is killed, and whoever is first."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import GpuNode

_MIB = 1 << 20
_CONTEXT_MIB = 300
"""A T4's, in the simulation."""


def _kill(node: GpuNode, programs: Path, rounds: int, *, seed: int) -> None:
    quota_mib = 4 * _CONTEXT_MIB + 500
    node.begin_job(quota_bytes=quota_mib * _MIB, context_bytes=_CONTEXT_MIB * _MIB)
    process = node.start(
        programs / "program_ledger", "kills", str(rounds), str(seed), str(quota_mib), str(_CONTEXT_MIB)
    )
    output, errors = process.communicate(timeout=30 + rounds)
    assert (process.returncode, output, errors) == (0, f"{rounds} rounds\n", "")


def test_the_ledger_is_right_after_processes_were_killed_at_any_moment(bare_gpu_node: GpuNode, programs: Path) -> None:
    _kill(bare_gpu_node, programs, 50, seed=1)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_the_ledger_is_right_after_a_thousand_kills(bare_gpu_node: GpuNode, programs: Path) -> None:
    _kill(bare_gpu_node, programs, 1000, seed=2)


def test_who_races_for_the_last_bytes_never_gets_more_than_there_are(bare_gpu_node: GpuNode, programs: Path) -> None:
    """By what they were given, and by what the device says is used."""
    quota_mib = 4 * _CONTEXT_MIB + 120
    bare_gpu_node.begin_job(quota_bytes=quota_mib * _MIB, context_bytes=_CONTEXT_MIB * _MIB)
    used_bytes, over = [0], threading.Event()

    def look() -> None:
        while not over.wait(0.0005):
            used_bytes.append(bare_gpu_node.machine.device(0).memory_used_bytes)

    looking = threading.Thread(target=look)
    looking.start()
    status, output, errors = bare_gpu_node.run(
        programs / "program_ledger", "race", "700", "1", str(quota_mib), str(_CONTEXT_MIB)
    )
    over.set()
    looking.join()
    assert (status, errors) == (0, "")
    given, refused, most = map(int, output.split())
    assert given > 10
    assert refused > 0
    assert 60 * _MIB < most <= 120 * _MIB
    assert 4 * _CONTEXT_MIB * _MIB < max(used_bytes) <= quota_mib * _MIB
