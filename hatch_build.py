"""What a wheel needs beside Python: `make native` has built it, and the wheel fits this kind of machine alone."""

from __future__ import annotations

import shutil
import subprocess
import sysconfig
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class NativeBuildHook(BuildHookInterface[Any]):
    """Builds the C rooms before a wheel is made or the checkout is installed."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002
        """Build, and let the wheel hold the outcome, which git ignores. Raises RuntimeError that says what is wrong."""
        if shutil.which("make") is None:
            raise RuntimeError("no GNU Make on the PATH; install it (Debian, Ubuntu: apt install make gcc libc6-dev)")
        built = subprocess.run(
            ["make", "--silent", "native"], cwd=self.root, capture_output=True, text=True, check=False
        )
        if built.returncode != 0:
            raise RuntimeError(f"make native failed:\n{built.stdout}{built.stderr}")
        build_data["artifacts"].append("/libs/*/muxflow_*/native/*")
        build_data["pure_python"] = False
        # Any Python 3: the libraries are loaded by ctypes and LD_PRELOAD, and know nothing of it.
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"
