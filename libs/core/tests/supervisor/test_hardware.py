"""Where a machine's GPUs come from, and what is left of them afterwards."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from muxflow import inventory
from muxflow.contracts import Gpu
from muxflow.supervisor import hardware, mps
from muxflow.supervisor.hardware import Declared, HardwareError, Present, Real, Simulated
from muxflow.supervisor.installation import NoGpusError, Plan, gpus_of
from muxflow.supervisor.mps import MpsError
from muxflow.supervisor.state import StateDirectory

T4 = Gpu(uuid="GPU-1", kind="T4", memory_bytes=16 * 2**30)


@pytest.fixture
def run_dir(tmp_path: Path) -> Iterator[Path]:
    path = hardware.run_directory(tmp_path)
    yield path
    if path.is_symlink():
        path.unlink()


def no_nvml(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine whose NVML is a file that is no library."""
    (tmp_path / "libnvidia-ml.so.1").write_text("")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))


def test_declared_gpus_are_not_watched_and_need_no_run_directory(tmp_path: Path, run_dir: Path) -> None:
    with hardware.present(Declared((T4,)), tmp_path) as present:
        assert (present.gpus, present.watched, present.run_dir) == ((T4,), (), None)
        assert not run_dir.exists()


def test_a_run_directory_is_the_same_each_time_and_short_enough_for_sockets(tmp_path: Path) -> None:
    path = hardware.run_directory(tmp_path)
    assert path == hardware.run_directory(tmp_path) != hardware.run_directory(tmp_path / "other")
    deepest = path / "devices/GPU-3f2b8c1e-7d44-4c0e-9a53-2f0d7c1e8b90/mps/control_privileged"
    assert len(os.fsencode(deepest)) < 108


def test_a_simulator_is_told_where_and_what_and_its_gpus_are_found_as_real_ones_are(
    tmp_path: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    def simulate(directory: Path, kinds: tuple[str, ...]) -> dict[str, str]:
        asked.extend((directory, kinds, stat.S_IMODE(directory.parent.stat().st_mode)))
        return {"SEEN": "yes"}

    class Found(EntryPoint):
        def load(self) -> object:
            return simulate

    def find(env: dict[str, str]) -> tuple[Gpu, ...]:
        return (T4,) if env == {"SEEN": "yes"} else ()

    monkeypatch.setattr(hardware, "entry_points", lambda group: [Found("it", "it:simulate", group)])
    monkeypatch.setattr(hardware, "find", find)
    with hardware.present(Simulated(("T4",)), tmp_path) as present:
        assert present.watched == (T4,)
        assert present.env == {"SEEN": "yes"}
    assert asked == [run_dir / "simgpu", ("T4",), 0o711]
    assert not run_dir.exists()


def test_without_a_simulator_it_is_said_what_to_install(
    tmp_path: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "entry_points", lambda group: [])
    with (
        pytest.raises(HardwareError, match=r"pip install 'muxflow\[sim\]'"),
        hardware.present(Simulated(("T4",)), tmp_path),
    ):
        pass
    assert not run_dir.exists()


def test_a_run_directory_that_somebody_else_made_is_not_used(tmp_path: Path, run_dir: Path) -> None:
    run_dir.symlink_to(tmp_path)
    with pytest.raises(HardwareError, match="belongs to somebody else"), hardware.present(Real(), tmp_path):
        pass


def test_gpus_that_were_asked_for_and_are_not_there_are_an_error_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_nvml(monkeypatch, tmp_path)
    plan = Plan(state_dir=tmp_path / "state", node="n", hardware=Real())
    with pytest.raises(HardwareError) as refused, gpus_of(plan, StateDirectory(plan.state_dir)):
        pass
    assert "\n" not in str(refused.value)
    assert "NVML" in str(refused.value)


def test_when_nobody_says_which_gpus_and_none_are_found_it_is_shown_how_to_have_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_nvml(monkeypatch, tmp_path)
    plan = Plan(state_dir=tmp_path / "state", node="n")
    with pytest.raises(NoGpusError) as refused, gpus_of(plan, StateDirectory(plan.state_dir)):
        pass
    lines = str(refused.value).splitlines()
    assert "  muxflow up --simulate T4 --simulate A100" in lines
    assert "  muxflow up --gpu T4:16GiB --gpu A100:40GiB" in lines
    assert all(f"  {line}" in lines for line in inventory.EXAMPLE.splitlines())


def test_without_mps_on_the_path_it_is_said_where_it_comes_from(tmp_path: Path) -> None:
    present = Present(hardware=Real(), gpus=(T4,), run_dir=tmp_path, env={"PATH": str(tmp_path)})
    with pytest.raises(MpsError, match="there is no nvidia-cuda-mps-control on the PATH"):
        mps.program(T4, present, tmp_path / "log")


def test_programs_are_told_where_mps_is_and_not_which_path_to_take(tmp_path: Path) -> None:
    env = {"PATH": "/simulated", "LD_LIBRARY_PATH": "/simulated", "MUXFLOW_SIMGPU": "/devices"}
    present = Present(hardware=Simulated(("T4",)), gpus=(T4,), run_dir=tmp_path, env=env)
    assert mps.client(T4, present) == {
        "LD_LIBRARY_PATH": "/simulated",
        "MUXFLOW_SIMGPU": "/devices",
        "CUDA_VISIBLE_DEVICES": "GPU-1",
        "CUDA_MPS_PIPE_DIRECTORY": str(tmp_path / "devices/GPU-1/mps"),
    }
