"""The quota on device memory: every way to take some counts, in all processes of the job, and none stays charged."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from muxflow_simgpu import native_dir

if TYPE_CHECKING:
    from conftest import GpuNode, Node

_MIB = 1 << 20
_CONTEXT = 300 * _MIB
_QUOTA = 1000 * _MIB

_BEGIN = """
from driver import *
context = begin()
MIB = 1 << 20

class Prop(ctypes.Structure):
    _fields_ = [("type", c_int), ("handles", c_int), ("where", c_int), ("id", c_int), ("w", c_void_p), ("f", c_uint64)]

class Array(ctypes.Structure):
    _fields_ = [("width", c_size_t), ("height", c_size_t), ("format", c_int), ("channels", c_uint)]

class Array3D(ctypes.Structure):
    _fields_ = [
        ("width", c_size_t), ("height", c_size_t), ("depth", c_size_t), ("format", c_int), ("channels", c_uint),
        ("flags", c_uint),
    ]

DEVICE = Prop(type=1, where=1)
FLOAT = 0x20

def pool():
    found = c_void_p()
    call("cuDeviceGetDefaultMemPool", byref(found), 0)
    return found

def pointer(name, *rest):
    address = c_uint64()
    return result_of(name, byref(address), *rest), address
"""

_TAKE = {
    "cuMemAlloc": 'pointer("cuMemAlloc_v2", c_size_t(n))',
    "cuMemAllocManaged": 'pointer("cuMemAllocManaged", c_size_t(n), 1)',
    "cuMemAllocPitch": 'pointer("cuMemAllocPitch_v2", byref(c_size_t()), c_size_t(n // 1024), c_size_t(1024), 4)',
    "cuMemAllocAsync": 'pointer("cuMemAllocAsync", c_size_t(n), None)',
    "cuMemAllocAsync_ptsz": 'pointer("cuMemAllocAsync_ptsz", c_size_t(n), None)',
    "cuMemAllocFromPoolAsync": 'pointer("cuMemAllocFromPoolAsync", c_size_t(n), pool(), None)',
    "cuMemAllocFromPoolAsync_ptsz": 'pointer("cuMemAllocFromPoolAsync_ptsz", c_size_t(n), pool(), None)',
    "cuMemCreate": 'pointer("cuMemCreate", c_size_t(n), byref(DEVICE), c_uint64(0))',
    "cuArrayCreate": 'pointer("cuArrayCreate_v2", byref(Array(n // 4096, 1024, FLOAT, 1)))',
    "cuArray3DCreate": 'pointer("cuArray3DCreate_v2", byref(Array3D(n // 4096, 32, 32, FLOAT, 1, 0)))',
    "cuMipmappedArrayCreate": ('pointer("cuMipmappedArrayCreate", byref(Array3D(n // 4096, 32, 32, FLOAT, 1, 0)), 1)'),
}
_GIVE = {
    "cuMemAlloc": 'call("cuMemFree_v2", taken)',
    "cuMemAllocManaged": 'call("cuMemFree_v2", taken)',
    "cuMemAllocPitch": 'call("cuMemFree_v2", taken)',
    "cuMemAllocAsync": 'call("cuMemFreeAsync", taken, None)',
    "cuMemAllocAsync_ptsz": 'call("cuMemFreeAsync_ptsz", taken, None)',
    "cuMemAllocFromPoolAsync": 'call("cuMemFreeAsync", taken, None)',
    "cuMemAllocFromPoolAsync_ptsz": 'call("cuMemFreeAsync_ptsz", taken, None)',
    "cuMemCreate": 'call("cuMemRelease", taken)',
    "cuArrayCreate": 'call("cuArrayDestroy", taken)',
    "cuArray3DCreate": 'call("cuArrayDestroy", taken)',
    "cuMipmappedArrayCreate": 'call("cuMipmappedArrayDestroy", taken)',
}


@pytest.fixture
def job(bare_gpu_node: GpuNode) -> GpuNode:
    """A job with a quota of 1,000 MiB, of which a context takes 300."""
    bare_gpu_node.begin_job(quota_bytes=_QUOTA, context_bytes=_CONTEXT)
    return bare_gpu_node


@pytest.mark.parametrize("call", _TAKE)
def test_memory_beyond_the_quota_is_refused_whatever_the_call(job: GpuNode, call: str) -> None:
    told = job.output_of(
        _BEGIN
        + f"""
def take(n):
    return {_TAKE[call]}

print(take(701 * MIB)[0])
result, taken = take(400 * MIB)
print(result, take(400 * MIB)[0])
{_GIVE[call]}
print(take(700 * MIB)[0])
"""
    )
    assert told.split() == ["2", "0", "2", "0"]


def test_memory_that_was_taken_unseen_is_freed_all_the_same(job: GpuNode) -> None:
    """Unseen: the function is found by its distance from one that is not hooked."""
    listed = subprocess.run(
        ["nm", "-D", native_dir() / "libcuda.so.1"], check=True, capture_output=True, text=True
    ).stdout.splitlines()
    places = {line.split()[-1]: int(line.split()[0], 16) for line in listed if len(line.split()) == 3}
    told = job.output_of(
        _BEGIN
        + f"""
known = ctypes.cast(cuda.cuInit, c_void_p).value
unseen = ctypes.CFUNCTYPE(c_int, c_void_p, c_size_t)(known + {places["cuMemAlloc_v2"] - places["cuInit"]})
address = c_uint64()
print(unseen(ctypes.addressof(address), 2000 * MIB))
print(result_of("cuMemFree_v2", address), result_of("cuMemFree_v2", address) != 0)
allocate(600 * MIB)
print("fits")
"""
    )
    assert told.split() == ["0", "0", "True", "fits"]


def test_physical_memory_counts_until_its_handle_and_its_mapping_are_gone(job: GpuNode) -> None:
    told = job.output_of(
        _BEGIN
        + """
size = c_size_t(400 * MIB)
address, handle = c_uint64(), c_uint64()
call("cuMemAddressReserve", byref(address), size, c_size_t(0), c_uint64(0), c_uint64(0))

def fits():
    result, taken = pointer("cuMemAlloc_v2", c_size_t(500 * MIB))
    if result == 0:
        call("cuMemFree_v2", taken)
    return result

call("cuMemCreate", byref(handle), size, byref(DEVICE), c_uint64(0))
call("cuMemMap", address, size, c_size_t(0), handle, c_uint64(0))
call("cuMemRelease", handle)
print(fits())
call("cuMemUnmap", address, size)
print(fits())
call("cuMemCreate", byref(handle), size, byref(DEVICE), c_uint64(0))
call("cuMemMap", address, size, c_size_t(0), handle, c_uint64(0))
call("cuMemUnmap", address, size)
print(fits())
call("cuMemRelease", handle)
print(fits())
"""
    )
    assert told.split() == ["2", "0", "2", "0"]


def test_contexts_count_and_take_their_memory_along(job: GpuNode) -> None:
    told = job.output_of(
        _BEGIN
        + """
def make():
    made = c_void_p()
    return result_of("cuCtxCreate_v2", byref(made), 0, 0), made

result, second = make()
print(result, pointer("cuMemAlloc_v2", c_size_t(300 * MIB))[0], make()[0])
call("cuCtxDestroy_v2", second)
call("cuCtxSetCurrent", context)
print(pointer("cuMemAlloc_v2", c_size_t(690 * MIB))[0])
"""
    )
    assert told.split() == ["0", "0", "2", "0"]


def test_the_quota_is_what_the_program_sees_as_the_devices_memory(job: GpuNode) -> None:
    told = job.output_of(
        _BEGIN
        + """
allocate(100 * MIB)
total = c_size_t()
call("cuDeviceTotalMem_v2", byref(total), 0)
print(*(n // MIB for n in (*memory_info(), total.value)))
print(result_of("cuMemGetInfo_v2", None, byref(total)) in (0, 1))
"""
    )
    assert told.split() == ["600", "1000", "1000", "True"]


_HOLD = _BEGIN + "allocate({mib} * MIB)\nsay('held')\ninput()\n"


def test_processes_of_a_job_share_the_quota_and_leave_nothing_charged(job: GpuNode) -> None:
    first = job.python(_HOLD.format(mib=300))
    assert job.hear(first) == "held"
    asking = _BEGIN + "print(pointer('cuMemAlloc_v2', c_size_t(200 * MIB))[0], memory_info()[0] // MIB)"
    assert job.output_of(asking).split() == ["2", "100"]
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert job.output_of(asking).split() == ["0", "500"]


def test_a_job_whose_context_alone_is_too_much_gets_none(job: GpuNode) -> None:
    first = job.python(_HOLD.format(mib=500))
    assert job.hear(first) == "held"
    process = job.python(_BEGIN)
    _, errors = process.communicate(timeout=30)
    assert "cuDevicePrimaryCtxRetain: 2" in errors


def test_a_child_that_is_forked_before_cuda_is_used_counts_for_itself(job: GpuNode) -> None:
    told = job.output_of(
        """
        from driver import *
        reading, writing = os.pipe()
        until, done = os.pipe()
        child = os.fork()
        begin()
        if child:
            os.read(reading, 1)
            address = c_uint64()
            print(result_of("cuMemAlloc_v2", byref(address), c_size_t(201 << 20)))
            print(result_of("cuMemAlloc_v2", byref(address), c_size_t(199 << 20)))
            os.write(done, b".")
            os.waitpid(child, 0)
        else:
            allocate(200 << 20)
            os.write(writing, b".")
            os.read(until, 1)
        """
    )
    assert told.split() == ["2", "0"]


def test_a_program_that_becomes_another_one_leaves_nothing_charged(job: GpuNode) -> None:
    process = job.python(_BEGIN + "allocate(50 * MIB); say('held'); input(); os.execv('/bin/sleep', ['sleep', '60'])")
    assert job.hear(process) == "held"
    job.slot_that(process.pid, lambda slot: slot.memory_bytes == 350 * _MIB)
    job.tell(process)
    job.slot_that(process.pid, lambda slot: slot.memory_bytes == 0 and slot.drained)
    assert job.output_of(_BEGIN + "allocate(700 * MIB); print('fits')").split() == ["fits"]


def test_a_program_that_becomes_itself_again_is_charged_once(job: GpuNode) -> None:
    again = "if 'again' not in os.environ: os.execve(sys.executable, sys.orig_argv, {**os.environ, 'again': ''})"
    process = job.python(_BEGIN + "allocate(50 * MIB)\n" + again + "\nsay('held'); input()")
    assert job.hear(process) == "held"
    job.slot_that(process.pid, lambda slot: slot.memory_bytes == 350 * _MIB and not slot.drained)
    assert [slot.pid for slot in job.usage().processes] == [process.pid]


def test_what_was_refused_and_what_is_held_is_told_in_the_job_page(job: GpuNode) -> None:
    process = job.python(
        _BEGIN + "pointer('cuMemAlloc_v2', c_size_t(900 * MIB)); allocate(50 * MIB); say('held'); input()"
    )
    assert job.hear(process) == "held"
    job.slot_that(process.pid, lambda slot: (slot.memory_bytes, slot.refused_bytes) == (350 * _MIB, 900 * _MIB))
    job.tell(process)
    assert process.wait() == 0
    assert job.usage().memory_bytes == 0


@pytest.mark.skipif(shutil.which("valgrind") is None, reason="instructions are counted by valgrind")
def test_taking_and_giving_back_costs_as_much_however_much_is_held(node: Node, programs: Path) -> None:
    def instructions(live: int, *, preload: bool) -> float:
        """Of a pair of calls."""
        _, _, errors = node.run(
            "valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", "--toggle-collect=pairs",
            programs / "program_allocations", "1000", str(live), preload=preload,
        )  # fmt: skip
        found = re.search(r"Collected : (\d+)", errors)
        assert found, errors
        return int(found[1]) / 2000

    bare = instructions(1, preload=False)
    few, many = (instructions(live, preload=True) - bare for live in (1, 20_000))
    assert few <= 400
    assert many <= few * 1.2
