"""Submit a job with nothing but a socket: the bus is plain NATS and JSON, any client in any language will do.

Uses the `user` credentials of tenant default that `muxflow up` made. They are an NKey: a key pair whose seed lies in a
file and signs what the server asks to sign.

    python examples/plain_nats.py [STATE_DIR]
"""

import base64
import json
import os
import socket
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import nkeys

TENANT = "default"
JOB = "from-a-socket"


def main() -> None:
    """Submit one job and print the server's ack: it is stored and will not be lost."""
    state_dir = Path(sys.argv[1]) if len(sys.argv) > 1 else default_state_dir()
    connection = json.loads((state_dir / "connection.json").read_text())
    user = next(each for each in connection["credentials"] if each["role"] == "user" and each["bound_to"] == TENANT)
    server = urlsplit(connection["server"])
    inbox = f"{user['inbox_prefix']}.plain"
    spec = {"command": ["echo", "hello from a socket"], "gpu": {"memory_bytes": 2**30}}
    payload = json.dumps({"spec": spec}).encode()

    with socket.create_connection((server.hostname, server.port), timeout=10) as sock, sock.makefile("rb") as lines:
        info = json.loads(lines.readline().removeprefix(b"INFO "))
        hello = sign_in(info["nonce"], (state_dir / user["path"]).read_bytes().strip())
        sock.sendall(b"CONNECT " + json.dumps(hello).encode() + b"\r\n")
        sock.sendall(f"SUB {inbox} 1\r\n".encode())
        sock.sendall(f"PUB muxflow.jobs.submit.{TENANT}.{JOB} {inbox} {len(payload)}\r\n".encode() + payload + b"\r\n")
        while line := lines.readline():
            if line.startswith(b"-ERR"):
                sys.exit(f"the server refused: {line.decode().strip()}")
            if line.startswith(b"MSG "):
                ack = json.loads(lines.read(int(line.split()[-1])))
                print(f"stored as message {ack['seq']} of stream {ack['stream']}")
                return
    sys.exit("the server closed the connection")


def sign_in(nonce: str, seed: bytes) -> dict[str, Any]:
    """Make the CONNECT message: our public key, and the server's nonce signed with the seed."""
    key = nkeys.from_seed(bytearray(seed))
    signature = base64.urlsafe_b64encode(key.sign(nonce.encode())).decode().rstrip("=")
    return {"verbose": False, "pedantic": False, "lang": "python", "nkey": key.public_key.decode(), "sig": signature}


def default_state_dir() -> Path:
    """Where `muxflow up` keeps its state unless told otherwise."""
    if given := os.environ.get("MUXFLOW_STATE_DIR"):
        return Path(given)
    return Path(os.environ.get("XDG_STATE_HOME") or Path("~/.local/state").expanduser()) / "muxflow"


if __name__ == "__main__":
    try:
        main()
    except (FileNotFoundError, ConnectionRefusedError) as error:
        sys.exit(f"is `muxflow up` running? {error}")
