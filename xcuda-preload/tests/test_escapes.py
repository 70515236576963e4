"""Ways past the gate that a program might take: each call that gives the device work, and pages that go."""

from __future__ import annotations

import runpy
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import GpuNode, Node

ROOM = Path(__file__).parents[1]
TABLE = runpy.run_path(str(ROOM / "src" / "hooks.py"))["read"](ROOM / "src" / "hooks.table")
LAUNCHES = [hook for hook in TABLE if hook.kind == "launch"]

_DRIVER = """
#include <string.h>
#include "cuda_types.h"
#define EXPORT __attribute__((visibility("default")))
static struct CUctx_st { int number; } context;
static int event;
EXPORT _Atomic int calls[256];
EXPORT CUresult cuCtxGetCurrent(CUcontext *current) { *current = (CUcontext)&context; return 0; }
EXPORT CUresult cuStreamGetCtx(CUstream stream, CUcontext *of) { (void)stream; *of = (CUcontext)&context; return 0; }
EXPORT CUresult cuStreamIsCapturing(CUstream stream, int *status) { (void)stream; *status = 0; return 0; }
EXPORT CUresult cuThreadExchangeStreamCaptureMode(int *mode) { (void)mode; return 0; }
EXPORT CUresult cuEventCreate(CUevent *made, unsigned flags) { (void)flags; *made = (CUevent)&event; return 0; }
EXPORT CUresult cuEventRecord(CUevent one, CUstream stream) { (void)one; (void)stream; return 0; }
EXPORT CUresult cuEventQuery(CUevent one) { (void)one; return 0; }
EXPORT CUresult cuStreamQuery(CUstream stream) { (void)stream; return 0; }
EXPORT CUresult cuEventElapsedTime(float *ms, CUevent one, CUevent other)
{ (void)one; (void)other; *ms = 0.001f; return 0; }
"""
"""A driver that does nothing, but for counting calls that give the device work; those are appended."""

_PROGRAM = """
import ctypes, threading
names = {names}
cuda = ctypes.CDLL("libcuda.so.1")
room = (ctypes.c_uint * 1024)(*[2] * 1024)  # for whoever wants a structure; as a type of memory, the device's
arguments = dict(stream=ctypes.c_void_p(None), pointer=ctypes.byref(room), number=ctypes.c_uint64(1))

def attempt(name, kinds):
    getattr(cuda, name)(*map(arguments.get, kinds))

calls = (ctypes.c_int * 256).in_dll(cuda, "calls")
threads = [threading.Thread(target=attempt, args=each) for each in names]
for thread in threads:
    thread.start()
print("all are on their way", flush=True)
input()
print(*(name for (name, _), count in zip(names, calls) if count), flush=True)
for thread in threads:
    thread.join()
print(*(name for (name, _), count in zip(names, calls) if count != 1), flush=True)
"""


def _kinds(parameters: str) -> list[str]:
    """What to pass for each parameter."""
    kinds = []
    for parameter in parameters.split(","):
        pointer = "*" in parameter or any(word in parameter for word in ("CUgraphExec", "CUfunction", "CUarray"))
        kinds.append("stream" if "CUstream " in parameter else "pointer" if pointer else "number")
    return kinds


@pytest.fixture
def counting(tmp_path: Path) -> Path:
    """Directory of the driver that counts."""
    functions = "".join(
        f"EXPORT CUresult {hook.name}({hook.parameters}) {{ calls[{index}]++; return 0; }}\n"
        for index, hook in enumerate(LAUNCHES)
    )
    source = tmp_path / "driver.c"
    source.write_text(_DRIVER + functions)
    subprocess.run(
        ["gcc", "-D_GNU_SOURCE", f"-I{ROOM / 'src'}", "-shared", "-fPIC", "-o", tmp_path / "libcuda.so.1", source],
        check=True,
    )
    return tmp_path


def test_none_of_the_calls_that_give_the_device_work_gets_past_a_frozen_gate(
    node_under: Callable[[Path], Node], counting: Path
) -> None:
    """All of the table, twins for per-thread streams too, each in a thread of its own."""
    counted = node_under(counting)
    names = [(hook.name, _kinds(hook.parameters)) for hook in LAUNCHES]
    process = counted.start(sys.executable, "-c", _PROGRAM.format(names=names))
    assert counted.hear(process) == "all are on their way"
    waited_ns = counted.frozen_ns(process.pid) + len(names) * 20_000_000
    counted.eventually(lambda: counted.frozen_ns(process.pid) > waited_ns)
    counted.tell(process)
    assert counted.hear(process) == "", "these were not held"
    counted.open_gate()
    assert counted.hear(process) == "", "these were lost, or made twice"
    assert process.wait(10) == 0


_LAUNCHING = """
    import ctypes, threading
    from driver import *
    context = begin()
    [spin] = functions("spin")
    where = stream()

    def go_on():
        call("cuCtxSetCurrent", context)
        while True:
            launch(spin, 50_000, where)

    threading.Thread(target=go_on).start()
    input()
    libc = ctypes.CDLL(None)
    for line in open("/proc/self/maps"):
        if line.rstrip().endswith("/device"):
            begins, ends = (int(word, 16) for word in line.split()[0].split("-"))
            libc.munmap(ctypes.c_void_p(begins), ctypes.c_size_t(ends - begins))
"""


@pytest.mark.parametrize("how", ["unmapped", "truncated"])
def test_who_takes_the_device_page_away_launches_nothing_more(gpu_node: GpuNode, how: str) -> None:
    """It dies where it would have read the gate, as any program does that breaks its own memory."""
    process = gpu_node.python(textwrap.dedent(_LAUNCHING))
    gpu_node.goes_on(process.pid)
    if how == "unmapped":
        gpu_node.tell(process)
    else:
        gpu_node.stop_heart()  # which has the page mapped, too
        with gpu_node.device_dir.device_page.open("r+b") as file:
            file.truncate(0)
    assert process.wait(10) < 0
