"""The run directory: where it is, what things are called in it, and who may look."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muxflow.contracts import Attempt
from muxflow_device.rundir import RunDirectory

ATTEMPT = Attempt(tenant="team-a", job="train.resnet", attempt=3)
NAMES = st.from_regex(r"\A[A-Za-z0-9]([A-Za-z0-9._-]{0,126}[A-Za-z0-9])?\Z")


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize(
    ("uid", "environment", "path"),
    [
        (0, {"MUXFLOW_RUN_DIR": "/elsewhere", "XDG_RUNTIME_DIR": "/run/user/0"}, "/elsewhere"),
        (0, {"XDG_RUNTIME_DIR": "/run/user/0"}, "/run/muxflow"),
        (1000, {"XDG_RUNTIME_DIR": "/run/user/1000"}, "/run/user/1000/muxflow"),
        (1000, {"MUXFLOW_RUN_DIR": ""}, "/dev/shm/muxflow-1000"),
    ],
)
def test_all_services_of_a_user_find_the_same_directory(
    monkeypatch: pytest.MonkeyPatch, uid: int, environment: dict[str, str], path: str
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    assert RunDirectory.default(environment).path == Path(path)


def test_names_are_where_the_documentation_says(run: RunDirectory) -> None:
    device, job = run.device("GPU-1.2/../x"), run.job(ATTEMPT)
    assert device.path == run.path / "devices" / "GPU-1=2E2=2F=2E=2E=2Fx"
    assert (device.device_page.name, device.beacons.name) == ("device", "beacons")
    assert (device.mps_pipe.name, device.mps_log.name) == ("mps", "mps-log")
    assert job.path == run.path / "jobs" / "team-a.train=2Eresnet.3"
    assert (job.control_page.name, job.job_page.name) == ("control", "job")
    assert run.executor_socket == run.path / "executor.sock"


def test_what_was_made_is_found_again(run: RunDirectory) -> None:
    assert [*run.devices(), *run.jobs()] == [], "before anything is there, nothing is"
    for uuid in ("GPU-2", "GPU-1.x"):
        run.device(uuid).create()
    run.job(ATTEMPT).create()
    (run.path / "devices" / "not encoded").mkdir()
    (run.path / "jobs" / ".unfinished").mkdir()
    (run.path / "jobs" / "file").touch()
    assert [device.uuid for device in run.devices()] == ["GPU-1.x", "GPU-2"]
    (job,) = run.jobs()
    assert (job.attempt, job.name) == (ATTEMPT, "team-a.train=2Eresnet.3")
    job.remove()
    job.remove()
    assert list(run.jobs()) == []


@given(tenant=NAMES, job=NAMES, attempt=st.integers(1, 10**6))
def test_an_attempt_is_known_by_its_directory_unless_its_name_is_too_long_for_one(
    tenant: str, job: str, attempt: int
) -> None:
    named = Attempt(tenant=tenant, job=job, attempt=attempt)
    directory = RunDirectory(Path("/run")).job(named)
    assert len(directory.name) < 255
    assert directory.attempt in (named, None)
    if len(tenant) + len(job) < 60:
        assert directory.attempt == named


def test_others_pass_through_and_see_no_list(run: RunDirectory) -> None:
    before = os.umask(0o077)
    try:
        run.job(ATTEMPT).create()
        run.device("GPU-1").create_mps()
    finally:
        os.umask(before)
    device = run.device("GPU-1")
    for directory in (run.path, run.path / "jobs", run.job(ATTEMPT).path, device.path, device.mps_pipe):
        assert mode_of(directory) == 0o711, directory
    assert mode_of(device.mps_log) == 0o700


def test_everybody_can_make_a_beacon_page_and_nobody_take_away_another_ones(run: RunDirectory) -> None:
    before = os.umask(0o077)
    try:
        for _ in range(2):
            run.device("GPU-1").create_beacons()
    finally:
        os.umask(before)
    assert mode_of(run.device("GPU-1").beacons) == 0o1777
    run.device("GPU-2").create()
    run.device("GPU-2").beacons.symlink_to(run.device("GPU-1").beacons)
    with pytest.raises(NotADirectoryError):
        run.device("GPU-2").create_beacons()


def test_a_directory_that_others_can_write_is_refused(run: RunDirectory) -> None:
    run.path.mkdir(mode=0o700)
    run.path.chmod(0o777)
    with pytest.raises(PermissionError, match="writable by others"):
        run.prepare()


def test_a_link_that_somebody_left_at_its_place_is_refused(run: RunDirectory, tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    run.path.symlink_to(tmp_path / "theirs")
    with pytest.raises(NotADirectoryError):
        run.prepare()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_a_directory_of_somebody_else_is_refused(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    run.path.mkdir(mode=0o711)
    os.chown(run.path, 12345, 12345)
    with pytest.raises(PermissionError, match="belongs to user 12345"):
        run.prepare()


def test_a_path_too_long_for_a_socket_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="MUXFLOW_RUN_DIR"):
        _ = RunDirectory(tmp_path / ("x" * 100)).executor_socket
