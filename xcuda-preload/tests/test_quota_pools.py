"""Memory from pools counts by what the pools hold of the device, which is more than what the program has of them."""

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
where = stream()

class Props(ctypes.Structure):
    _fields_ = [
        ("type", c_int), ("handles", c_int), ("place", c_int), ("id", c_int), ("w", c_void_p), ("most", c_size_t),
        ("rest", c_uint64 * 7),
    ]

def new_pool(keep=0):
    pool, threshold = c_void_p(), c_uint64(keep)
    call("cuMemPoolCreate", byref(pool), byref(Props(type=1, place=1)))
    call("cuMemPoolSetAttribute", pool, 4, byref(threshold))
    return pool

def take(n, pool=None, where=where):
    address = c_uint64()
    if pool is None:
        return result_of("cuMemAllocAsync", byref(address), c_size_t(n), where), address
    return result_of("cuMemAllocFromPoolAsync", byref(address), c_size_t(n), pool, where), address

def give(address, where=where):
    call("cuMemFreeAsync", address, where)

def wait():
    call("cuStreamSynchronize", where)

def plain(n):
    address = c_uint64()
    result = result_of("cuMemAlloc_v2", byref(address), c_size_t(n))
    if result == 0:
        call("cuMemFree_v2", address)
    return result

def left():
    return memory_info()[0] // MIB
"""


@pytest.fixture
def job(bare_gpu_node: GpuNode) -> GpuNode:
    """A job with a quota of 1,000 MiB, of which a context takes 300."""
    bare_gpu_node.begin_job(quota_bytes=1000 * _MIB, context_bytes=300 * _MIB)
    return bare_gpu_node


def test_what_a_pool_keeps_after_a_free_counts_until_it_is_trimmed(job: GpuNode) -> None:
    told = job.output_of(
        _BEGIN
        + """
pool = new_pool(keep=1 << 40)
result, taken = take(400 * MIB, pool)
give(taken)
wait()
print(result, left(), plain(400 * MIB))
call("cuMemPoolTrimTo", pool, c_size_t(100 * MIB))
print(left(), plain(400 * MIB))
"""
    )
    assert told.split() == ["0", "300", "2", "600", "0"]


def test_what_a_pool_keeps_is_used_again_without_being_charged_again(job: GpuNode) -> None:
    told = job.output_of(
        _BEGIN
        + """
pool = new_pool(keep=1 << 40)
for _ in range(20):
    result, taken = take(600 * MIB, pool)
    assert result == 0
    give(taken)
    wait()
print(left(), take(700 * MIB, pool)[0], take(701 * MIB, pool)[0])
"""
    )
    assert told.split() == ["100", "0", "2"]


def test_a_pool_that_keeps_nothing_gives_its_memory_back_when_the_stream_is_waited_for(job: GpuNode) -> None:
    told = job.output_of(
        _BEGIN
        + """
[wait_for] = functions("wait_for")
word = allocate(8)
for pool in (None, new_pool()):
    call("cuMemcpyHtoD_v2", c_uint64(word), bytes(8), c_size_t(8))
    result, taken = take(400 * MIB, pool)
    launch(wait_for, word, where)
    give(taken)
    print(result, plain(400 * MIB))
    call("cuMemcpyHtoD_v2", c_uint64(word), b"\1" + bytes(7), c_size_t(8))
    wait()
    print(left(), plain(690 * MIB))
"""
    )
    assert told.split() == ["0", "2", "699", "0"] * 2


def test_a_pool_that_is_destroyed_counts_until_its_last_allocation_is_freed(job: GpuNode) -> None:
    told = job.output_of(
        _BEGIN
        + """
pool = new_pool(keep=1 << 40)
first, second = take(200 * MIB, pool)[1], take(300 * MIB, pool)[1]
give(first)
wait()
print(left())
call("cuMemPoolDestroy", pool)
print(left(), plain(400 * MIB))
give(second)
wait()
print(left(), plain(690 * MIB))
print(result_of("cuMemPoolDestroy", pool))
"""
    )
    assert told.split() == ["200", "400", "0", "700", "0", "1"]


def test_a_pool_goes_with_the_last_context_and_counts_again_once_it_is_used_again(job: GpuNode) -> None:
    """The simulated driver keeps pools; that of the device is known to be there, the program's own may be gone."""
    told = job.output_of(
        _BEGIN
        + """
pool = new_pool(keep=1 << 40)
kept, own = take(100 * MIB)[1], take(300 * MIB, pool)[1]
second = c_void_p()
call("cuDevicePrimaryCtxRetain", byref(second), 0)
call("cuDevicePrimaryCtxRelease_v2", 0)
print(left())
call("cuDevicePrimaryCtxReset_v2", 0)
begin()
where = stream()
print(left())
give(kept, where)
wait()
print(left(), take(50 * MIB, pool, where)[0], left())
"""
    )
    assert told.split() == ["300", "600", "700", "0", "350"]


def test_the_devices_current_pool_may_be_another_one(job: GpuNode) -> None:
    told = job.output_of(
        _BEGIN
        + """
take(100 * MIB)
pool = new_pool(keep=1 << 40)
call("cuDeviceSetMemPool", 0, pool)
taken = take(300 * MIB)[1]
give(taken)
wait()
print(left())
call("cuMemPoolTrimTo", pool, c_size_t(0))
print(left())
"""
    )
    assert told.split() == ["300", "600"]


def test_either_kind_of_memory_may_be_freed_in_either_way(job: GpuNode) -> None:
    told = job.output_of(
        _BEGIN
        + """
taken = take(300 * MIB)[1]
call("cuMemFree_v2", taken)
print(left())
give(c_uint64(allocate(300 * MIB)))
wait()
print(left(), result_of("cuMemFreeAsync", taken, where), left())
"""
    )
    assert told.split() == ["700", "700", "1", "700"]


def test_what_the_driver_refuses_is_not_charged(job: GpuNode) -> None:
    told = job.output_of(
        _BEGIN
        + """
pool = c_void_p()
call("cuMemPoolCreate", byref(pool), byref(Props(type=1, place=1, most=100 * MIB)))
print(take(101 * MIB, pool)[0], take(600 * MIB, c_void_p(1))[0], result_of("cuMemAllocAsync", None, 4096, where))
print(take(0)[0], left())
"""
    )
    assert told.split() == ["2", "1", "1", "0", "700"]


def test_many_threads_take_from_one_pool_and_leave_nothing_charged(job: GpuNode) -> None:
    told = job.output_of(
        _BEGIN
        + """
import threading
pool = new_pool(keep=1 << 40)
failed = []

def work():
    call("cuCtxSetCurrent", context)
    where = stream()
    for n in range(60):
        result, taken = take((n % 7 + 1) * MIB, pool, where)
        failed.append(result)
        if n % 3 == 0:
            call("cuStreamSynchronize", where)
        give(taken, where)
    call("cuStreamSynchronize", where)

threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
reserved = c_uint64()
call("cuMemPoolGetAttribute", pool, 5, byref(reserved))
print(any(failed), left() == 700 - reserved.value // MIB)
call("cuMemPoolTrimTo", pool, c_size_t(0))
print(left())
"""
    )
    assert told.split() == ["False", "True", "700"]


def test_threads_that_race_for_the_rest_of_the_quota_never_get_more(job: GpuNode) -> None:
    """From a pool that keeps nothing and one that keeps all; some wait for what they freed, some do not."""
    told = job.output_of(
        _BEGIN
        + """
import random, threading
pools, lock, held, most = [new_pool(), new_pool(keep=1 << 40)], threading.Lock(), 0, 0

def count(n):
    global held, most
    with lock:
        held += n
        most = max(most, held)

def work(seed):
    call("cuCtxSetCurrent", context)
    lots, where, mine = random.Random(seed), stream(), []

    def give_one():
        taken, n = mine.pop(lots.randrange(len(mine)))
        count(-n)
        give(taken, where)

    for _ in range(120):
        n = lots.randrange(1, 100) * MIB
        if mine and lots.random() < 0.5:
            give_one()
        else:
            result, taken = take(n, lots.choice(pools), where)
            if result == 0:
                count(n)
                mine.append((taken, n))
        if lots.random() < 0.3:
            call("cuStreamSynchronize", where)
    while mine:
        give_one()
    call("cuStreamSynchronize", where)

threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
for pool in pools:
    call("cuMemPoolTrimTo", pool, c_size_t(0))
print(300 * MIB < most <= 700 * MIB, left())
"""
    )
    assert told.split() == ["True", "700"]
