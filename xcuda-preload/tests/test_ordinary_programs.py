"""Programs under the library give what they give without it: output, exit status, results."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import GpuNode, Node

_SOURCE = Path(__file__).parents[1] / "src"

_FORKS = """
import os, multiprocessing, threading
if __name__ == "__main__":
    for method in ("fork", "spawn", "forkserver"):
        with multiprocessing.get_context(method).Pool(2) as pool:
            print(pool.map(abs, range(-2, 3)))
    threads = [threading.Thread(target=print, args=("thread",)) for _ in range(4)]
    for thread in threads: thread.start(); thread.join()
    print(os.waitstatus_to_exitcode(os.system("kill -TERM $$")))
"""

_ASYNCIO = """
import asyncio
async def main():
    child = await asyncio.create_subprocess_exec("cat", stdin=-1, stdout=-1)
    print((await child.communicate(b"hello"))[0])
asyncio.run(main())
"""

_PERL = "$SIG{TERM} = sub { print 'caught' }; kill 'TERM', $$; fork or exit 0; wait; print $? . 'x'"
_AWK = 'BEGIN { print 6 * 7; "date +%Y" | getline year; print (year > 2000); exit 5 }'
_NODE = "new (require('worker_threads').Worker)('console.log(1)', {eval: true}); setTimeout(() => {}, 50)"

_COMPILE = "t=$(mktemp -d); echo 'int main(void) {{ return 7; }}' | {} -o $t/a - && $t/a; echo $?; rm -r $t"

_COMMANDS = {
    "a shell": ["sh", "-c", "trap 'echo caught' TERM; kill -TERM $$; (exit 3) || echo $?; echo a | tr a b; exit 4"],
    "bash with jobs": ["bash", "-c", "sleep 60 & kill $!; wait $!; echo $?; diff <(echo 1) <(echo 2)"],
    "a shell that dies by its signal": ["sh", "-c", "kill -TERM $$; echo never"],
    "env without an environment": ["env", "-i", "/bin/sh", "-c", "echo $LD_PRELOAD:$XCUDA_JOB_DIR"],
    "python": [sys.executable, "-c", "import sys, json, ssl, sqlite3; print(json.dumps(sys.argv)); sys.exit(9)"],
    "python with children": [sys.executable, "-c", _FORKS],
    "python's asyncio with children": [sys.executable, "-c", _ASYNCIO],
    "python's ctypes": [sys.executable, "-c", "import ctypes; print(ctypes.CDLL('libm.so.6').abs(-7))"],
    "git": ["git", "--no-pager", "log", "-1", "--format=%s"],
    "make": ["make", "-f", "-", "-j2"],
    "perl": ["perl", "-e", _PERL],
    "awk": ["awk", _AWK],
    "sed and sort": ["sh", "-c", "printf 'b\\na\\n' | sort | sed s/a/A/ | xargs -n1 echo"],
    "tar": ["sh", "-c", "tar -cf - -C / etc/hostname | tar -tf -"],
    "node": ["node", "-e", _NODE],
    "java": ["java", "-Xshare:auto", "-version"],
    "a C compiler": ["sh", "-c", "echo 'int main(void) { return 0; }' | cc -x c -fsyntax-only - && echo fine"],
    "gdb": ["gdb", "-batch", "-ex", "print 1 + 1"],
    "a daemon": ["sh", "-c", "setsid sh -c 'echo from the daemon' < /dev/null"],
    "timeout": ["timeout", "0.1", "sleep", "60"],
    "nohup": ["sh", "-c", "nohup sh -c 'echo out' 2>/dev/null"],
    "dash": ["dash", "-c", "x=$(echo 1; exit 3); echo $x $?; set -e; false; echo never"],
    "bash that reads": ["bash", "-c", "while read -r line; do echo ${#line}; done; coproc cat; echo ${COPROC[0]}"],
    "a compiler and its program": ["sh", "-c", _COMPILE.format("gcc -x c")],
    "another compiler": ["sh", "-c", _COMPILE.format("clang -x c")],
    "a linker": ["sh", "-c", "ld -o /dev/null --defsym x=1 /dev/null; echo $?"],
    "gzip": ["sh", "-c", "seq 1000 | gzip -9 | gzip -dc | cksum"],
    "xz": ["sh", "-c", "seq 1000 | xz -T2 | xz -dc | cksum"],
    "bzip2": ["sh", "-c", "seq 1000 | bzip2 | bzip2 -dc | cksum"],
    "zstd": ["sh", "-c", "seq 1000 | zstd -q -T2 | zstd -dc | cksum"],
    "find": ["find", str(_SOURCE), "-name", "s*.c", "-newermt", "2000-01-01", "-exec", "basename", "{}", ";"],
    "xargs": ["sh", "-c", "seq 9 | xargs -n2 -P1 echo; seq 3 | xargs -I% sh -c 'exit %'; echo $?"],
    "sort": ["sh", "-c", "seq 20000 | sort -R --random-source=/dev/zero | sort -n --parallel=2 | tail -1"],
    "ssh-keygen": ["sh", "-c", "ssh-keygen -q -t ed25519 -N '' -f $(mktemp -u) && echo made"],
    "openssl": ["sh", "-c", "echo text | openssl dgst -sha256"],
    "go": ["go", "version"],
    "cargo": ["cargo", "--version"],
    "rustc": ["rustc", "--print", "sysroot"],
    "tclsh": ["sh", "-c", "echo 'puts [expr 6 * 7]; exec sh -c {kill -TERM $$}' | tclsh"],
    "strace": ["strace", "-f", "-o", "/dev/null", "sh", "-c", "echo traced; exit 6"],
    "a daemon that forks twice": ["sh", "-c", "(setsid sh -c 'echo from far &' &) | cat"],
    "what cron would run": ["env", "-i", "PATH=/usr/bin:/bin", "sh", "-c", "cd / && umask 077 && pwd"],
    "a setuid program": ["su", "--version"],
    "another setuid program": ["mount", "--version"],
    "dd": ["sh", "-c", "dd if=/dev/zero bs=1000 count=9 status=none | wc -c"],
    "od and cut": ["sh", "-c", "printf abc | od -An -tx1 | cut -c2-3"],
    "diff and patch": ["bash", "-c", "t=$(mktemp); seq 5 > $t; diff $t <(seq 6) | patch -s -o - $t; rm $t"],
    "jq": ["sh", "-c", "echo '[1,{}]' | jq -c '.[0] + 1'"],
    "bc": ["sh", "-c", "echo '2^64' | bc"],
    "curl": ["curl", "-s", "file:///etc/hostname"],
    "sqlite3": ["sqlite3", ":memory:", "select 6 * 7; create table t (x); insert into t values (1); select * from t"],
    "file": ["file", "-b", "/bin/sh"],
    "binutils": ["sh", "-c", "readelf -h /bin/sh | head -3; objdump -f /bin/sh | tail -3; nm -D /bin/sh | wc -l"],
    "cmake": ["cmake", "-E", "echo", "made"],
    "ninja": ["ninja", "--version"],
    "vim": ["sh", "-c", "printf 'a\\nb\\n' | vim -es -u NONE -c '%s/a/c/' -c '%p' -c 'q!' /dev/stdin"],
    "tee and checksums": ["sh", "-c", "echo text | tee /dev/stderr | sha256sum; echo text | base64"],
    "ps": ["sh", "-c", "ps -o comm= -p $$; nice -n 5 nice; taskset -p 1 $$ > /dev/null && nproc"],
    "script": ["sh", "-c", "script -qec 'echo typed' /dev/null < /dev/null"],
    "ssh": ["ssh", "-G", "nowhere.invalid"],
    "perl that executes": ["perl", "-e", "alarm 5; exec 'echo', 'done'"],
    "node with children": [
        "node",
        "-e",
        "console.log(require('child_process').spawnSync('sh', ['-c', 'kill -TERM $$']).signal); process.exit(3)",
    ],
    "python that is stopped": [sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGTERM)"],
    "zip": ["sh", "-c", "cd /etc && zip -q - hostname | unzip -p /dev/stdin 2>&1 | wc -c"],
}


_NEEDED = {
    "a compiler and its program": "gcc",
    "another compiler": "clang",
    "a linker": "ld",
    "diff and patch": "patch",
    "binutils": "readelf",
    **{
        name: name
        for name in [
            "bc",
            "bzip2",
            "gzip",
            "jq",
            "openssl",
            "script",
            "ssh-keygen",
            "tclsh",
            "vim",
            "xz",
            "zip",
            "zstd",
        ]
    },
}
_IN_A_SHELL = ("bc", "bzip2", "gzip", "jq", "openssl", "script", "ssh-keygen", "tclsh", "vim", "xz", "zip", "zstd")


@pytest.mark.parametrize("what", _COMMANDS)
def test_a_program_that_has_nothing_to_do_with_cuda_is_unharmed(node: Node, what: str) -> None:
    command = _COMMANDS[what]
    for program in (command[0], _NEEDED.get(what, what if what in _IN_A_SHELL else command[0])):
        if shutil.which(program) is None:
            pytest.skip(f"there is no {program} here")

    def outcome(process: subprocess.Popen[str]) -> tuple[int, str, str]:
        output, errors = process.communicate("all:\n\t@echo made $$((1 + 1))\n", timeout=50)
        return process.returncode, output, errors

    beside, without = (node.start(*command, preload=preload) for preload in (True, False))
    assert outcome(beside) == outcome(without)
    assert node.usage().processes == ()


def test_nothing_is_written_unless_a_log_is_asked_for(gpu_node: GpuNode, programs: Path, tmp_path: Path) -> None:
    gpu_node.freeze()
    process = gpu_node.start(programs / "program_kernels", "us=50", "count=10")
    gpu_node.eventually(lambda: gpu_node.frozen_ns(process.pid))
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=30) == ("", "")
    log = tmp_path / "log"
    gpu_node.open_gate()
    gpu_node.run(programs / "program_kernels", "us=50", "count=10", extra={"XCUDA_LOG": str(log)})
    lines = log.read_text().splitlines()
    assert lines
    assert all(line.startswith("xcuda[") for line in lines)


_DRIVER_PROGRAM = """
from cuda.bindings import driver as cu

def check(answer):
    error, *values = answer
    assert error == cu.CUresult.CUDA_SUCCESS, error
    return values[0] if len(values) == 1 else values

check(cu.cuInit(0))
device = check(cu.cuDeviceGet(0))
print(check(cu.cuDeviceGetCount()), check(cu.cuDriverGetVersion()))
context = check(cu.cuDevicePrimaryCtxRetain(device))
check(cu.cuCtxSetCurrent(context))
from driver import PTX
module = check(cu.cuModuleLoadData(PTX))
spin = check(cu.cuModuleGetFunction(module, b"spin"))
stream = check(cu.cuStreamCreate(1))
memory = check(cu.cuMemAlloc(1 << 20))
check(cu.cuMemsetD8Async(memory, 7, 1 << 20, stream))
other = check(cu.cuMemAllocAsync(1 << 16, stream))
check(cu.cuMemcpyDtoDAsync(other, memory, 1 << 16, stream))
back = bytearray(1 << 16)
check(cu.cuMemcpyDtoHAsync(back, other, len(back), stream))
check(cu.cuStreamSynchronize(stream))
print(back == b"\\7" * len(back))
import ctypes
for i in range(200):
    check(cu.cuLaunchKernel(spin, i % 3 + 1, 1, 1, 32, 1, 1, 0, stream, ((20000,), (ctypes.c_uint64,)), 0))
start, end = check(cu.cuEventCreate(0)), check(cu.cuEventCreate(0))
check(cu.cuEventRecord(start, stream))
check(cu.cuLaunchKernel(spin, 1, 1, 1, 32, 1, 1, 0, stream, ((5000000,), (ctypes.c_uint64,)), 0))
check(cu.cuEventRecord(end, stream))
check(cu.cuEventSynchronize(end))
print(round(check(cu.cuEventElapsedTime(start, end))))
check(cu.cuStreamBeginCapture(stream, cu.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_GLOBAL))
check(cu.cuMemsetD8Async(memory, 9, 1 << 20, stream))
graph = check(cu.cuStreamEndCapture(stream))
ready = check(cu.cuGraphInstantiate(graph, 0))
check(cu.cuGraphLaunch(ready, stream))
check(cu.cuMemcpyDtoH(back, memory, len(back)))
print(back == b"\\t" * len(back))
print(cu.cuMemAlloc(0)[0], cu.cuMemFree(12345)[0], cu.cuStreamSynchronize(stream)[0])
check(cu.cuMemFreeAsync(other, stream))
check(cu.cuMemFree(memory))
check(cu.cuCtxSynchronize())
check(cu.cuDevicePrimaryCtxRelease(device))
"""


def test_a_program_on_the_drivers_bindings_computes_the_same(gpu_node: GpuNode) -> None:
    told = gpu_node.output_of(_DRIVER_PROGRAM)
    assert told == gpu_node.output_of(_DRIVER_PROGRAM, preload=False)
    assert len(told.splitlines()) == 5
    assert gpu_node.usage().launches > 200


def test_a_program_ends_with_its_last_thread_though_ours_lives_on(gpu_node: GpuNode) -> None:
    told = gpu_node.output_of(
        """
        import threading, time
        from driver import *
        context = begin()
        [spin] = functions("spin")
        launch(spin, 1000)
        pthread_exit = ctypes.CDLL(None).pthread_exit
        def last():
            time.sleep(0.2)
            say("last")
            pthread_exit(None)
        threading.Thread(target=last).start()
        pthread_exit(None)
        """
    )
    assert told == "last\n"


def _names_of_hooks() -> list[str]:
    """The hooks by index."""
    listed = subprocess.run(
        [sys.executable, _SOURCE / "hooks.py", "--names", _SOURCE / "hooks.table"],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    return [line.split()[1] for line in listed.splitlines()]


def test_the_first_lost_context_is_told_with_its_error_and_its_call(gpu_node: GpuNode) -> None:
    process = gpu_node.python(
        """
        from driver import *
        begin()
        fault, spin = functions("fault", "spin")
        launch(fault, None)
        taken = result_of("cuMemAlloc_v2", byref(c_uint64()), c_size_t(8))
        print(result_of("cuCtxSynchronize"), launch_result(spin, 1000), taken)
        sys.stdout.flush()
        input()
        """
    )
    codes = gpu_node.hear(process).split()
    assert codes[:2] == ["700", "700"]
    slot = gpu_node.slot_that(process.pid, lambda slot: slot.error)
    assert slot.error == 700
    assert _names_of_hooks()[slot.error_call or 0] in {"cuMemAlloc_v2", "cuCtxSynchronize"}
