"""Memory that processes of a job share counts once: with the one that made it. The host's memory does not count."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import GpuNode

_MIB = 1 << 20

_BEGIN = """
from driver import *
context = begin()
MIB = 1 << 20
SIZE = c_size_t(200 * MIB)

class Prop(ctypes.Structure):
    _fields_ = [("type", c_int), ("handles", c_int), ("where", c_int), ("id", c_int), ("w", c_void_p), ("f", c_uint64)]

class Handle(ctypes.Structure):
    _fields_ = [("bytes", ctypes.c_uint8 * 64)]

def left():
    return memory_info()[0] // MIB

def exported():
    handle, fd = c_uint64(), c_int()
    call("cuMemCreate", byref(handle), SIZE, byref(Prop(type=1, handles=1, where=1)), c_uint64(0))
    call("cuMemExportToShareableHandle", byref(fd), handle, 1, c_uint64(0))
    return handle, fd.value

def imported(fd):
    handle = c_uint64()
    call("cuMemImportFromShareableHandle", byref(handle), c_void_p(fd), 1)
    return handle

def reserved():
    address = c_uint64()
    call("cuMemAddressReserve", byref(address), SIZE, c_size_t(0), c_uint64(0), c_uint64(0))
    return address
"""


@pytest.fixture
def job(bare_gpu_node: GpuNode) -> GpuNode:
    """A job with a quota of 1,000 MiB, of which each context takes 300."""
    bare_gpu_node.begin_job(quota_bytes=1000 * _MIB, context_bytes=300 * _MIB)
    return bare_gpu_node


def test_memory_that_is_opened_from_another_process_counts_there(job: GpuNode) -> None:
    owner = job.python(
        _BEGIN
        + """
handle = Handle()
call("cuIpcGetMemHandle", byref(handle), c_uint64(allocate(200 * MIB)))
say(bytes(handle.bytes).hex())
input()
"""
    )
    told = job.hear(owner)
    assert (
        job.output_of(
            _BEGIN
            + f"""
handle, address = Handle.from_buffer_copy(bytes.fromhex("{told}")), c_uint64()
print(left())
call("cuIpcOpenMemHandle_v2", byref(address), handle, 1)
print(left())
call("cuIpcCloseMemHandle", address)
print(left())
"""
        ).split()
        == ["200"] * 3
    )


def test_physical_memory_that_is_imported_counts_where_it_was_made(job: GpuNode) -> None:
    owner = job.python(_BEGIN + "handle, fd = exported()\nsay(os.getpid(), fd)\ninput()\n")
    pid, fd = job.hear(owner).split()
    assert (
        job.output_of(
            _BEGIN
            + f"""
print(left())
handle, address = imported(os.open("/proc/{pid}/fd/{fd}", os.O_RDWR)), reserved()
call("cuMemMap", address, SIZE, c_size_t(0), handle, c_uint64(0))
print(left())
call("cuMemRelease", handle)
call("cuMemUnmap", address, SIZE)
print(left())
"""
        ).split()
        == ["200"] * 3
    )


def test_what_a_process_imports_from_itself_counts_once(job: GpuNode) -> None:
    told = job.output_of(
        _BEGIN
        + """
handle, fd = exported()
again = imported(fd)
print(left())
call("cuMemRelease", again)
print(left())
call("cuMemRelease", handle)
print(left())
"""
    )
    assert told.split() == ["500", "500", "700"]


def test_a_handle_that_is_got_back_from_a_mapping_counts_like_the_one_before(job: GpuNode) -> None:
    told = job.output_of(
        _BEGIN
        + """
handle, address, again = exported()[0], reserved(), c_uint64()
call("cuMemMap", address, SIZE, c_size_t(0), handle, c_uint64(0))
call("cuMemRelease", handle)
call("cuMemRetainAllocationHandle", byref(again), c_void_p(address.value + 64 * MIB))
call("cuMemUnmap", address, SIZE)
print(left())
call("cuMemRelease", again)
print(left())
"""
    )
    assert told.split() == ["500", "700"]


def test_the_hosts_memory_does_not_count(job: GpuNode) -> None:
    told = job.output_of(
        _BEGIN
        + """
host, own = c_void_p(), ctypes.create_string_buffer(1 << 20)
call("cuMemHostAlloc", byref(host), c_size_t(2000 * MIB), 0)
call("cuMemAllocHost_v2", byref(host), c_size_t(2000 * MIB))
call("cuMemHostRegister_v2", own, c_size_t(1 << 20), 0)
print(left())
"""
    )
    assert told.split() == ["700"]
