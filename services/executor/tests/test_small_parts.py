"""Parts that need no process of their own."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from executing_node import GPU, slot_of
from muxflow.contracts import GpuDecision, LogsQuery, Slot
from muxflow_executor.answers import read_piece
from muxflow_executor.cgroups import attempts_cgroup
from muxflow_executor.desired import Desired
from muxflow_executor.environment import SecretError, read_secret
from muxflow_executor.processes import handles, signal_number
from muxflow_executor.shim.handover import pack
from muxflow_executor.shim.output import SEGMENT


def decision(*slots: Slot, term: int = 1, generation: int = 1, gpu: str = GPU, session: str = "s") -> GpuDecision:
    return GpuDecision(node="node.a", gpu=gpu, term=term, generation=generation, session=session, slots=slots)


def test_older_decision_has_no_say_even_after_a_restart(tmp_path: Path) -> None:
    desired = Desired([GPU], tmp_path / "obeyed.json")
    desired.begin("s")
    assert desired.take(decision(term=3, generation=7))
    assert not desired.take(decision(term=2, generation=9))
    desired.save()
    again = Desired([GPU], tmp_path / "obeyed.json")
    again.begin("s")
    assert not again.take(decision(term=3, generation=6))
    assert again.take(decision(term=3, generation=7))


def test_versions_count_anew_in_a_new_session(tmp_path: Path) -> None:
    desired = Desired([GPU], tmp_path / "obeyed.json")
    desired.begin("s")
    desired.take(decision(term=9))
    desired.begin("t")
    assert desired.take(decision(term=1, session="t"))


def test_slots_on_a_gpu_that_is_not_here_are_withdrawn(tmp_path: Path) -> None:
    desired = Desired([GPU], tmp_path / "obeyed.json")
    desired.begin("s")
    slot = slot_of("true")
    desired.take(decision(slot, gpu="GPU-gone"))
    taken = desired.decisions["GPU-gone"]
    assert taken is not None
    assert (taken.slots, taken.withdrawn) == ((), (slot.key,))


def test_secret_is_its_file_without_the_last_line_end(tmp_path: Path) -> None:
    (tmp_path / "default").mkdir()
    (tmp_path / "default" / "key").write_bytes(b"two\nlines\r\n")
    assert read_secret("key", tenant="default", secrets_dir=tmp_path) == "two\nlines"


@pytest.mark.parametrize("name", ["", ".", "..", "../other/key", "a/b", ".hidden", "x" * 300])
def test_secret_names_cannot_leave_the_tenants_directory(tmp_path: Path, name: str) -> None:
    with pytest.raises(SecretError):
        read_secret(name, tenant="default", secrets_dir=tmp_path)


def test_node_without_secrets_says_so() -> None:
    with pytest.raises(SecretError, match="this node has no secrets"):
        read_secret("key", tenant="default", secrets_dir=None)


def test_handled_signals_are_told_from_those_that_would_end_the_process() -> None:
    before = signal.signal(signal.SIGUSR2, lambda *_: None)
    try:
        assert handles(os.getpid(), signal.SIGUSR2)
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert not handles(os.getpid(), signal.SIGUSR2)
    assert not handles(2**22 + 1, signal.SIGUSR2)


@pytest.mark.parametrize(
    ("name", "number"),
    [("SIGUSR1", signal.SIGUSR1), ("SIGRTMIN", signal.SIGRTMIN), ("SIGRTMIN+15", signal.SIGRTMIN + 15)],
)
def test_signal_names_of_checkpoints_have_numbers(name: str, number: int) -> None:
    assert signal_number(name) == number


def test_handover_tells_its_length_first() -> None:
    assert pack("/a", {"B": "é"}) == b"7\n/a\0B=\xc3\xa9"


def test_cgroups_are_made_below_the_own_one_in_the_v2_hierarchy(tmp_path: Path) -> None:
    hierarchy = tmp_path / "unified"
    (hierarchy / "own").mkdir(parents=True)
    mounts, own = tmp_path / "mounts", tmp_path / "own"
    mounts.write_text(f"cgroup /sys/fs/cgroup/cpu cgroup rw 0 0\ncgroup2 {hierarchy} cgroup2 rw 0 0\n")
    own.write_text("4:memory:/x\n0::/own\n")
    assert attempts_cgroup(tmp_path, mounts=mounts, own=own) is None  # a plain directory cannot kill
    assert [path.name[:8] for path in (hierarchy / "own").iterdir()] == ["muxflow-"]


def test_no_cgroup_where_there_is_no_v2_hierarchy(tmp_path: Path) -> None:
    mounts, own = tmp_path / "mounts", tmp_path / "own"
    mounts.write_text("cgroup /sys/fs/cgroup/cpu cgroup rw 0 0\n")
    own.write_text("4:memory:/x\n")
    assert attempts_cgroup(tmp_path, mounts=mounts, own=own) is None


def test_shim_needs_the_standard_library_only() -> None:
    package = Path(sys.modules["muxflow_executor.shim.handover"].__file__ or "").parent
    imported = {
        line.split()[1].split(".")[0]
        for path in package.glob("*.py")
        for line in path.read_text().splitlines()
        if line.startswith(("import ", "from "))
    }
    assert imported - {"__future__", "muxflow_executor"} <= sys.stdlib_module_names


def test_output_that_moves_while_it_is_read_is_not_told_as_empty(tmp_path: Path) -> None:
    """An attempt's directory is renamed when it is forgotten, often just when somebody asks for its output."""
    directory = tmp_path / "attempt"
    directory.mkdir()
    (directory / f"{SEGMENT}{0:016d}").write_bytes(b"hello")
    query = LogsQuery(job="x")
    piece = read_piece(directory, query)
    assert piece is not None
    assert piece.data == b"hello"
    directory.rename(tmp_path / "elsewhere")
    assert read_piece(directory, query) is None
