"""Names that travel in subjects and keys.

A NATS subject token may hold no dot, space, ``*`` or ``>``, a KV key only ``[-/_=.a-zA-Z0-9]``; node names contain
dots and workload names whatever people choose. One reversible encoding serves both: ``[A-Za-z0-9_-]`` stays, every
other byte of the UTF-8 form becomes ``=`` and two upper-case hex digits.
"""

from __future__ import annotations

import re
from typing import Final

_PLAIN: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-")
_PLAIN_NAME: Final = re.compile(r"[A-Za-z0-9_-]+")
_ENCODED: Final = re.compile(r"(?:[A-Za-z0-9_-]|=[0-9A-F]{2})+")

# Python's `$` also matches before a last newline, other languages' does not: `(?!\n)` makes them agree.
JOB_NAME_PATTERN: Final = r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,126}[A-Za-z0-9])?$(?!\n)"
"""Job and tenant names: 1 to 128 of letters, digits, dot, underscore, hyphen; first and last a letter or digit."""


def encode_token(name: str) -> str:
    """Encode a non-empty name as one subject token or KV key token.

    >>> encode_token("gpu-7.rack2.example")
    'gpu-7=2Erack2=2Eexample'
    """
    if not name:
        raise ValueError("an empty name has no subject token")
    if _PLAIN_NAME.fullmatch(name):
        return name
    return "".join(chr(byte) if byte in _PLAIN else f"={byte:02X}" for byte in name.encode())


def decode_token(token: str) -> str:
    """Give back the name that `encode_token` encoded; ValueError for anything it cannot have made."""
    if _PLAIN_NAME.fullmatch(token):
        return token
    if not _ENCODED.fullmatch(token):
        raise ValueError(f"not an encoded name: {token!r}")
    raw = re.sub(rb"=([0-9A-F]{2})", lambda match: bytes([int(match[1], 16)]), token.encode())
    name = raw.decode()  # UnicodeDecodeError is a ValueError
    if encode_token(name) != token:
        raise ValueError(f"not the canonical encoding of {name!r}: {token!r}")
    return name
