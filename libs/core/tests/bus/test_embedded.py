from __future__ import annotations

import asyncio
import os
import socket
import subprocess
from pathlib import Path

import pytest

from muxflow.bus.credentials import Principal, ensure, generate_seed, public_key
from muxflow.bus.embedded import EmbeddedServer, ServerError, explain, free_port
from muxflow.bus.server_config import Server, render
from muxflow.contracts import Role


def server(directory: Path, *, store: Path | None = None, port: int | None = None) -> EmbeddedServer:
    port = port or free_port()
    config = directory / "nats.conf"
    config.write_text(render(Server(name="t", port=port, store_dir=str(store or directory / "store")), {}))
    return EmbeddedServer(config, host="127.0.0.1", port=port, log=directory / "nats.log")


async def test_a_server_is_ready_when_start_returns_and_gone_when_stop_returns(tmp_path: Path) -> None:
    embedded = server(tmp_path)
    await embedded.start()
    pid = embedded.pid
    assert pid is not None
    with socket.create_connection(("127.0.0.1", embedded.port), 1) as connection:
        assert connection.recv(5) == b"INFO "
    await embedded.stop()
    assert embedded.pid is None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_a_taken_port_is_said_in_one_line(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ServerError, match=f"^port {port} is taken$"):
            await server(tmp_path, port=port).start()


async def test_another_server_on_the_port_is_not_taken_for_ours(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first = server(tmp_path / "a")
    await first.start()
    with pytest.raises(ServerError, match=f"^port {first.port} is taken$"):
        await server(tmp_path / "b", port=first.port).start()
    await first.stop()


async def test_a_store_that_cannot_be_written_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ServerError, match="store is not writable") as failed:
        await server(tmp_path, store=tmp_path / "file" / "store").start()
    assert "\n" not in str(failed.value)


async def test_a_config_that_is_wrong_is_said_in_one_line(tmp_path: Path) -> None:
    embedded = server(tmp_path)
    (tmp_path / "nats.conf").write_text("listen: nonsense {")
    with pytest.raises(ServerError, match="Parse error on line 1") as failed:
        await embedded.start()
    assert "\n" not in str(failed.value)


def test_a_full_disk_is_recognised() -> None:
    log = "[1] 2026/01/01 [ERR] Error creating stream: write /x/1.blk: no space left on device\n[1] [INF] bye\n"
    assert explain(log).startswith("the disk is full")


async def test_a_killed_server_starts_again_on_the_same_store(tmp_path: Path) -> None:
    embedded = server(tmp_path)
    await embedded.start()
    await embedded.kill()
    await embedded.start()
    assert embedded.pid is not None
    await embedded.stop()


def test_seeds_are_private_and_made_once(tmp_path: Path) -> None:
    node = Principal(role=Role.NODE, bound_to="n.1")
    first = ensure(tmp_path / "credentials", [node])
    path = tmp_path / "credentials" / "node-n=2E1.nk"
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert ensure(tmp_path / "credentials", [node]) == first
    assert first[node] == public_key(path.read_text())
    assert first[node].startswith("U")


def test_a_file_that_is_no_seed_is_named(tmp_path: Path) -> None:
    (tmp_path / "operator.nk").write_text("not a seed\n")
    with pytest.raises(ValueError, match=r"operator\.nk: not an NKey seed"):
        ensure(tmp_path, [Principal(role=Role.OPERATOR)])


def test_seeds_differ() -> None:
    assert generate_seed() != generate_seed()


async def test_nothing_is_left_behind_when_starting_is_given_up(tmp_path: Path) -> None:
    embedded = server(tmp_path)
    starting = asyncio.create_task(embedded.start())
    await asyncio.sleep(0.005)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert embedded.pid is None
    found = subprocess.run(["pgrep", "-f", str(tmp_path)], capture_output=True, text=True, check=False)
    assert found.stdout == ""
