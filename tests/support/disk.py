"""Small disks that a test may fill or write-protect; they take a root that may mount."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


class Disk:
    """A tmpfs of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._ballast = path / "ballast"

    def fill(self) -> None:
        """Take every free byte."""
        with self._ballast.open("ab") as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(2**20))
                file.flush()
        with self._ballast.open("ab", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))

    def free(self) -> None:
        """Give back what `fill` took."""
        self._ballast.unlink()

    def remount(self, options: str) -> None:
        _run("mount", "-o", f"remount,{options}", str(self.path))


@contextlib.contextmanager
def mounted(path: Path, options: str) -> Iterator[Disk]:
    """Mount one, or skip the test and say why."""
    path.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk takes root")
    try:
        _run("mount", "-t", "tmpfs", "-o", options, "muxflow-test", str(path))
    except subprocess.CalledProcessError as error:
        pytest.skip(f"this root may not mount: {error.stderr.strip()}")
    try:
        yield Disk(path)
    finally:
        _run("umount", "--lazy", str(path))


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)
