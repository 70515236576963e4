"""Where this process may make a cgroup (v2) for each attempt."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path


def attempts_cgroup(
    state_dir: Path, *, mounts: Path = Path("/proc/self/mounts"), own: Path = Path("/proc/self/cgroup")
) -> Path | None:
    """Make the directory below which attempts get their cgroups; None where that is not permitted.

    Below this process's own cgroup, so that whatever bounds the service bounds its jobs too. Hybrid hierarchies work:
    only the v2 mount counts.
    """
    try:
        root = next(
            (Path(fields[1]) for fields in map(str.split, mounts.read_text().splitlines()) if fields[2] == "cgroup2"),
            None,
        )
        ours = next((line[3:] for line in own.read_text().splitlines() if line.startswith("0::")), None)
        if root is None or ours is None:
            return None
        fingerprint = hashlib.sha256(str(state_dir.resolve()).encode()).hexdigest()[:12]
        parent = root / ours.lstrip("/") / f"muxflow-{fingerprint}"
        parent.mkdir(exist_ok=True)
        probe = parent / "probe"
        probe.mkdir(exist_ok=True)
        killable = (probe / "cgroup.kill").exists()
        probe.rmdir()
    except OSError:
        return None
    return parent if killable else None


def leave(parent: Path | None) -> None:
    """Remove the directory, unless an attempt is in it."""
    if parent is not None:
        with contextlib.suppress(OSError):
            parent.rmdir()
