"""What the executor hands to a shim over its descriptor 0: the directory of an attempt and its environment."""

from __future__ import annotations

import os


def pack(directory: str, environment: dict[str, str]) -> bytes:
    """Make the message. Its length goes first: so a shim can tell that the executor was killed while it wrote.

    ValueError for a NUL, which no environment can hold.
    """
    parts = [directory, *(f"{name}={value}" for name, value in environment.items())]
    if any("\0" in part for part in parts):
        raise ValueError("a NUL in the environment")
    body = b"\0".join(os.fsencode(part) for part in parts)
    return b"%d\n%b" % (len(body), body)


def receive() -> tuple[str, dict[bytes, bytes]] | None:
    """Wait for the message; None when the executor ended without one. Descriptor 0 is ``/dev/null`` afterwards."""
    with open(0, "rb", closefd=False) as source:
        length, _, body = source.read().partition(b"\n")
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.close(null)
    if not length.isdigit() or int(length) != len(body):
        return None
    directory, *pairs = body.split(b"\0")
    environment = {name: value for name, equals, value in (pair.partition(b"=") for pair in pairs) if equals}
    return os.fsdecode(directory), environment
