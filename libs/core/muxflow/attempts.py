"""What attempts are called as files and directories, wherever a node keeps something of them."""

from __future__ import annotations

import hashlib
from typing import Final

from muxflow.contracts import Attempt, decode_token, encode_token

_NAME_BYTES_MAX: Final = 200
_FINGERPRINT_CHARACTERS: Final = 32


def directory_prefix(tenant: str, job: str) -> str:
    """Name a job as a file: its encoded names, or a part and a fingerprint of them when they are too long for one."""
    name = f"{encode_token(tenant)}.{encode_token(job)}"
    if len(name) <= _NAME_BYTES_MAX:
        return name
    fingerprint = hashlib.sha256(name.encode()).hexdigest()[:_FINGERPRINT_CHARACTERS]
    return f"{name[: _NAME_BYTES_MAX - _FINGERPRINT_CHARACTERS]}~{fingerprint}"


def directory_name(attempt: Attempt) -> str:
    """Name an attempt's directory."""
    return f"{directory_prefix(attempt.tenant, attempt.job)}.{attempt.attempt}"


def attempt_from_name(name: str) -> Attempt | None:
    """Give back the attempt that `directory_name` named; None for any other name, and for a shortened one."""
    prefix, _, number = name.rpartition(".")
    tenant, _, job = prefix.partition(".")
    try:
        return Attempt(tenant=decode_token(tenant), job=decode_token(job), attempt=int(number))
    except ValueError:
        return None
