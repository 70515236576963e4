"""The environment of a job's program: a clean base, what the job asks for, its secrets, and where it runs."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from muxflow.contracts import Slot
from muxflow_executor.processes import RUN_ID

_INHERITED: Final = ("PATH", "HOME", "LANG", "USER", "TZ", "TMPDIR")
"""What a program may expect of a machine. Nothing else of the executor's environment is passed on."""
_DEFAULT_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_SECRET_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,254}")


class SecretError(ValueError):
    """A secret cannot be had. The message names it and never holds a value."""


def environment_of(
    slot: Slot,
    *,
    node: str,
    gpu: str,
    run_id: str,
    secrets_dir: Path | None,
    checkpoint_dir: Path,
    checkpoint_mark: Path,
    inherited: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Make the whole environment of a program. What the job sets wins over the base, never over what names the run.

    Raises `SecretError`.
    """
    surroundings = os.environ if inherited is None else inherited
    environment = {"PATH": _DEFAULT_PATH, "LANG": "C.UTF-8"}
    environment["PYTHONUNBUFFERED"] = "1"  # output goes to a pipe: a Python program's would be seen at its end only
    environment |= {name: surroundings[name] for name in _INHERITED if name in surroundings}
    environment |= slot.launch.env
    for variable, secret in sorted(slot.launch.secrets.items()):
        environment[variable] = read_secret(secret, tenant=slot.tenant, secrets_dir=secrets_dir)
    environment |= {
        "MUXFLOW_TENANT": slot.tenant,
        "MUXFLOW_JOB": slot.job,
        "MUXFLOW_ATTEMPT": str(slot.attempt),
        "MUXFLOW_NODE": node,
        "MUXFLOW_GPU": gpu,
        RUN_ID: run_id,
        "MUXFLOW_CHECKPOINT_DIR": str(checkpoint_dir),
        "MUXFLOW_CHECKPOINT_MARK": str(checkpoint_mark),
        "CUDA_VISIBLE_DEVICES": gpu,
    }
    if slot.sm_share_pct is not None:
        environment["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] = str(slot.sm_share_pct)
    return environment


def read_secret(name: str, *, tenant: str, secrets_dir: Path | None) -> str:
    """Read the file of a tenant's secret, without the line's end that editors put there. Raises `SecretError`."""
    if secrets_dir is None:
        raise SecretError(
            f"secret {name!r} is wanted, and this node has no secrets: set executor.secrets_dir, the directory of "
            "<tenant>/<name> files"
        )
    if not _SECRET_NAME.fullmatch(name) or not _SECRET_NAME.fullmatch(tenant):
        raise SecretError(f"secret {name!r}: a name is of letters, digits, '_', '-' and '.', and begins with no '.'")
    try:
        text = (secrets_dir / tenant / name).read_bytes()
    except FileNotFoundError:
        raise SecretError(f"secret {name!r} of tenant {tenant!r} is not on this node") from None
    except OSError as error:
        raise SecretError(f"secret {name!r} of tenant {tenant!r} cannot be read: {error.strerror}") from None
    if b"\0" in text:
        raise SecretError(f"secret {name!r} of tenant {tenant!r} holds a NUL, which no environment can")
    return os.fsdecode(text.removesuffix(b"\n").removesuffix(b"\r"))
