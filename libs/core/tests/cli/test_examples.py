"""The examples in Python end with a line where nothing runs that they could talk to."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import nkeys
import pytest

EXAMPLES = Path(__file__).parents[4] / "examples"


def run(example: str, state_dir: Path) -> subprocess.CompletedProcess[str]:
    environ = {key: value for key, value in os.environ.items() if not key.startswith("MUXFLOW_")}
    return subprocess.run(
        [sys.executable, EXAMPLES / example],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={**environ, "MUXFLOW_STATE_DIR": str(state_dir)},
    )


def left_behind(state_dir: Path, port: int) -> None:
    """Write what an earlier `muxflow up` leaves: the address of a server, and a tenant's credentials."""
    seed = nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER)
    for role in ("user", "operator", "observer"):
        (state_dir / f"{role}.nk").write_bytes(seed)
    credentials = [
        {"role": "user", "bound_to": "default", "path": "user.nk", "inbox_prefix": "_INBOX.user"},
        {"role": "operator", "bound_to": None, "path": "operator.nk", "inbox_prefix": "_INBOX.operator"},
        {"role": "observer", "bound_to": None, "path": "observer.nk", "inbox_prefix": "_INBOX.observer"},
    ]
    file = {"server": f"nats://127.0.0.1:{port}", "node": "vm", "credentials": credentials}
    (state_dir / "connection.json").write_text(json.dumps(file))


@pytest.mark.parametrize("example", ["submit.py", "plain_nats.py", "alerts.py"])
@pytest.mark.parametrize("was_up", [False, True], ids=["never up", "no longer up"])
def test_without_a_server_an_example_ends_with_a_line_that_says_so(example: str, was_up: bool, tmp_path: Path) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # bound and not listening: whoever connects is refused
        if was_up:
            left_behind(tmp_path, nobody.getsockname()[1])
        done = run(example, tmp_path)
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "`muxflow up`" in line
