"""The library in /etc/ld.so.preload of a container, where the job's directory decides, and not the environment."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Node

_CONTAINER = """
set -eu
directory=$1; library=$2; job=$3; device=$4; shift 4
mount -t tmpfs tmpfs "$directory"
mkdir "$directory/etc"
mount --bind /etc "$directory/etc"
mount -t tmpfs tmpfs /etc
ln -s "$directory"/etc/* /etc/
mount -t tmpfs tmpfs /run
mkdir -p /run/muxflow/jobs /run/muxflow/devices
if [ "$job" ]; then
    mkdir /run/muxflow/job /run/muxflow/device
    mount --bind "$job" /run/muxflow/job
    mount --bind "$device" /run/muxflow/device
fi
if [ "$library" ]; then echo "$library" >/etc/ld.so.preload; fi
exec "$@"
"""
"""Makes /etc and /run the container's own, in a mount namespace, and runs a program there."""

QUOTA_BYTES = 1 << 30


class Container:
    """Programs in a container of the node's job."""

    def __init__(self, node: Node, library: Path, directory: Path) -> None:
        self._node = node
        self._library = library
        self._directory = directory

    def start(self, *command: str | Path, preload: bool = True, job: bool = True) -> subprocess.Popen[str]:
        return self._node.start(
            "unshare", "--mount", "sh", "-c", _CONTAINER, "sh", self._directory,
            self._library if preload else "",
            self._node.job_dir.path if job else "", self._node.device_dir.path,
            *command,
            preload=False,
        )  # fmt: skip

    def run(self, *command: str | Path, preload: bool = True, job: bool = True) -> tuple[int, str, str]:
        process = self.start(*command, preload=preload, job=job)
        output, errors = process.communicate(timeout=30)
        return process.returncode, output, errors

    def ways(self, programs: Path, *before: str, job: bool = True) -> dict[str, str]:
        """Whose function a program finds in each of the ways to a launch."""
        status, output, errors = self.run(
            *before, programs / "program_symbols", programs / "libcuda.so.1", programs / "libbound.so", job=job
        )
        assert (status, errors) == (0, "")
        return dict(line.split(": ", 1) for line in output.splitlines())


@pytest.fixture
def container(bare_node: Node, library: Path, tmp_path: Path) -> Container:
    if os.geteuid() != 0:
        pytest.skip("only root can make a mount namespace")
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode != 0:
        message = "this machine makes no mount namespaces"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    bare_node.begin_job(quota_bytes=QUOTA_BYTES, context_bytes=1 << 20)
    (tmp_path / "container").mkdir()
    return Container(bare_node, library, tmp_path / "container")


_HOOK, _DRIVER = "libxcuda.so:cuLaunchKernel", "libcuda.so.1:cuLaunchKernel"

_ORDINARY = """
echo $0 $#; ls /run/muxflow; cat </dev/null
"$1" -c 'import json, ssl, subprocess; print(subprocess.run(["sh", "-c", "exit 3"]).returncode)'
"$2" a b; echo $?
env -i sh -c 'kill -TERM $$'; echo $?
setsid --wait sh -c 'echo daemon'; find /run/muxflow -maxdepth 0; false
"""

_STATIC = "int main(int count, char **words) { return words[0][0] == 0 ? 1 : 40 + count; }"


def test_ordinary_programs_of_a_container_are_unharmed(bare_node: Node, container: Container, tmp_path: Path) -> None:
    static = tmp_path / "static"
    subprocess.run(["cc", "-static", "-x", "c", "-", "-o", static], input=_STATIC, text=True, check=True, timeout=60)
    command = ("sh", "-c", _ORDINARY, "sh", sys.executable, static)
    with_library, without = container.run(*command), container.run(*command, preload=False)
    assert with_library == without
    assert "\n43\n" in with_library[1]
    assert bare_node.usage().processes == bare_node.usage().ended == ()


_CHILD = """
import ctypes, signal, sys
signal.alarm(25)
cuda = ctypes.CDLL(sys.argv[1])
context, address = ctypes.c_void_p(), ctypes.c_uint64()
assert cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0) == cuda.cuCtxSetCurrent(context) == 0
taken = cuda.cuMemAlloc_v2(ctypes.byref(address), ctypes.c_size_t(400 << 20))
launched = cuda.cuLaunchKernel(ctypes.c_void_p(1000), 1, 1, 1, 32, 1, 1, 0, None, None, None)
sys.stdout.write(f"{taken} {launched}\\n")
"""

_CHILDREN = """
env -i "$1" -c "$2" "$3" &
env -i XCUDA_MODE=beacon "$1" -c "$2" "$3" &
XCUDA_DEVICE_DIR=/nowhere XCUDA_JOB_DIR=/nowhere "$1" -c "$2" "$3" &
env -i LD_PRELOAD= "$1" -c 'import os, sys; os.execve(sys.argv[1], sys.argv[1:], {})' "$1" -c "$2" "$3" &
wait
"""


def test_whatever_a_process_has_made_of_its_environment_it_is_held_and_within_the_quota(
    bare_node: Node, container: Container, programs: Path
) -> None:
    bare_node.freeze()
    process = container.start("sh", "-c", _CHILDREN, "sh", sys.executable, _CHILD, programs / "libcuda.so.1")
    bare_node.eventually(
        lambda: len([slot for slot in bare_node.usage().processes if slot.frozen_ns > 50_000_000]) == 4
    )
    assert bare_node.usage().launches == 0
    assert bare_node.usage().memory_bytes == 2 * (400 << 20) + 4 * (1 << 20)
    bare_node.open_gate()
    output, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (0, "")
    assert sorted(output.splitlines()) == ["0 0", "0 0", "2 0", "2 0"]


_SETUID = 'cp "$1" /run/program; chmod u+s /run/program; shift; exec setpriv --reuid=65534 /run/program "$@"'


def test_a_setuid_program_of_a_container_is_gated(container: Container, programs: Path) -> None:
    if shutil.which("setpriv") is None:
        pytest.skip("there is no setpriv here")
    ways = container.ways(programs, "sh", "-c", _SETUID, "sh")
    assert (ways["handle"], ways["not hooked"]) == (_HOOK, "libcuda.so.1:cuInit")


def test_on_a_host_the_library_in_that_file_leaves_programs_alone(
    bare_node: Node, container: Container, programs: Path
) -> None:
    ways = container.ways(programs, "env", "-u", "XCUDA_MODE", job=False)
    assert ways["handle"] == ways["cuGetProcAddress"] == _DRIVER
    assert bare_node.usage().ended == ()


def test_on_a_host_the_environment_decides(bare_node: Node, container: Container, programs: Path) -> None:
    told = [f"{name}={value}" for name, value in bare_node.pages().items()]
    assert container.ways(programs, "env", *told, job=False)["handle"] == _HOOK


def test_on_a_host_a_setuid_program_obeys_no_variable(bare_node: Node, container: Container, programs: Path) -> None:
    if shutil.which("setpriv") is None:
        pytest.skip("there is no setpriv here")
    told = [f"{name}={value}" for name, value in bare_node.pages().items()]
    ways = container.ways(programs, "env", *told, "XCUDA_MODE=offline", "sh", "-c", _SETUID, "sh", job=False)
    assert ways["handle"] == _DRIVER
