"""A client finds server and credentials: what it is told, then the environment, then a state directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from muxflow.contracts import Role
from muxflow.discovery import (
    ConnectionFile,
    Credentials,
    DiscoveryError,
    environment_on,
    find,
    online_file,
    state_dir,
)
from muxflow.supervisor.state import StateDirectory, StateError

OPERATOR = Credentials(role=Role.OPERATOR, path="credentials/operator.nk", inbox_prefix="_INBOX_operator")
USER = Credentials(role=Role.USER, bound_to="vision", path="credentials/somebody.nk", inbox_prefix="_INBOX_user_vision")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    state = StateDirectory(tmp_path / "state")
    with state.open_locked():
        state.write_connection(ConnectionFile(server="nats://127.0.0.1:4000", node="n", credentials=(OPERATOR, USER)))
    for each in (OPERATOR, USER):
        (state.root / each.path).touch()
    return state.root


def test_the_state_directory_is_where_the_environment_says() -> None:
    assert state_dir({"MUXFLOW_STATE_DIR": "/a", "XDG_STATE_HOME": "/b"}) == Path("/a")
    assert state_dir({"XDG_STATE_HOME": "/b"}) == Path("/b/muxflow")
    assert state_dir({}) == Path("~/.local/state/muxflow").expanduser()


def test_a_state_directory_gives_server_and_operator(directory: Path) -> None:
    access = find(directory=directory, environ={})
    assert access.bus.servers == ("nats://127.0.0.1:4000",)
    assert access.bus.credentials == str(directory / "credentials/operator.nk")
    assert (access.role, access.bus.inbox_prefix) == (Role.OPERATOR, "_INBOX_operator")
    assert find(environ={"MUXFLOW_STATE_DIR": str(directory)}) == access


def test_the_environment_goes_before_the_default_state_directory(directory: Path) -> None:
    environ = {"MUXFLOW_STATE_DIR": str(directory), "MUXFLOW_BUS__SERVERS": '["nats://elsewhere:1"]'}
    assert find(environ=environ).bus.servers == ("nats://elsewhere:1",)


def test_what_is_given_goes_first(directory: Path) -> None:
    environ = {"MUXFLOW_BUS__SERVERS": '["nats://elsewhere:1"]'}
    assert find(directory=directory, environ=environ).bus.servers == ("nats://127.0.0.1:4000",)
    assert find(server="nats://given:2", environ=environ).bus.servers == ("nats://given:2",)


def test_other_credentials_bring_their_role_tenant_and_inbox(directory: Path) -> None:
    access = find(directory=directory, credentials=directory / USER.path, environ={})
    assert (access.role, access.tenant, access.bus.inbox_prefix) == (Role.USER, "vision", "_INBOX_user_vision")


def test_credentials_from_elsewhere_are_known_by_their_name(tmp_path: Path) -> None:
    seed = tmp_path / "user-a=2Eb.nk"
    seed.touch()
    access = find(server="nats://given:2", credentials=seed, directory=tmp_path, environ={})
    assert (access.role, access.tenant, access.bus.inbox_prefix) == (Role.USER, "a.b", "_INBOX_user_a=2Eb")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "start `muxflow up` or give --server"),
        ({"server": "nats://x:1", "credentials": Path("/none.nk")}, "/none.nk: there is no such file"),
    ],
)
def test_what_is_missing_is_named(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(DiscoveryError, match=message):
        find(directory=tmp_path, environ={}, **arguments)


def test_a_connection_file_that_makes_no_sense_is_named(directory: Path) -> None:
    (directory / "connection.json").write_text(json.dumps({"server": 1}))
    with pytest.raises(DiscoveryError, match=r"connection\.json: Expected `str`"):
        find(directory=directory, environ={})


def test_a_state_directory_is_its_owners_alone(directory: Path) -> None:
    assert directory.stat().st_mode & 0o777 == 0o700
    assert (directory / "connection.json").stat().st_mode & 0o777 == 0o600


def test_a_state_directory_is_held_by_one_at_a_time(directory: Path) -> None:
    first, second = StateDirectory(directory), StateDirectory(directory)
    with first.open_locked(), pytest.raises(StateError, match=r"already runs in"), second.open_locked():
        pass
    with StateDirectory(directory).open_locked():
        pass


def test_a_directory_with_something_else_in_it_is_left_alone(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(StateError, match="is not empty"), StateDirectory(tmp_path).open_locked():
        pass
    assert tmp_path.stat().st_mode & 0o777 == 0o755


def test_programs_learn_what_they_need_to_be_served_on_a_gpu_of_this_machine(tmp_path: Path) -> None:
    state = StateDirectory(tmp_path / "state")
    served = {"CUDA_VISIBLE_DEVICES": "GPU-1"}
    with state.open_locked():
        connection = ConnectionFile(server="nats://127.0.0.1:1", node="n", credentials=(), devices={"GPU-1": served})
        state.write_connection(connection)
    assert environment_on("GPU-1", directory=state.root, environ={}) == served
    with pytest.raises(DiscoveryError, match="GPU-2 is not shared by `muxflow up` on this machine, which is node n"):
        environment_on("GPU-2", directory=state.root)
    with pytest.raises(DiscoveryError, match="no `muxflow up` has run there"):
        environment_on("GPU-1", environ={"MUXFLOW_STATE_DIR": str(tmp_path)})


def test_the_beacon_is_preloaded_before_what_the_program_preloads_itself_unless_it_is_unwanted(tmp_path: Path) -> None:
    state = StateDirectory(tmp_path / "state")
    with state.open_locked():
        state.write_connection(
            ConnectionFile(
                server="nats://127.0.0.1:1",
                node="n",
                credentials=(),
                devices={"GPU-1": {"CUDA_VISIBLE_DEVICES": "GPU-1"}},
                beacons={"GPU-1": {"LD_PRELOAD": "/libxcuda.so", "XCUDA_MODE": "beacon"}},
            )
        )
    served = {"CUDA_VISIBLE_DEVICES": "GPU-1", "LD_PRELOAD": "/libxcuda.so", "XCUDA_MODE": "beacon"}

    def told(preloaded: dict[str, str], *, beacon: bool = True) -> dict[str, str]:
        return environment_on("GPU-1", directory=state.root, environ=preloaded, beacon=beacon)

    assert told({}) == served
    assert told({"LD_PRELOAD": "/a.so:/b.so"}) == {**served, "LD_PRELOAD": "/libxcuda.so:/a.so:/b.so"}
    assert told({"LD_PRELOAD": "/libxcuda.so:/a.so"}) == {**served, "LD_PRELOAD": "/libxcuda.so:/a.so"}
    assert told({"LD_PRELOAD": "/a.so"}, beacon=False) == {"CUDA_VISIBLE_DEVICES": "GPU-1"}


def test_online_workloads_are_declared_where_the_monitor_keeps_its_state(tmp_path: Path) -> None:
    assert online_file(directory=tmp_path) == StateDirectory(tmp_path).own("monitor") / "online.toml"
