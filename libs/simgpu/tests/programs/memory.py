"""Memory in all its forms: what it holds, and what it takes from the device."""

import array
import ctypes
from ctypes import byref, c_int, c_size_t, c_uint8, c_uint16, c_uint32, c_uint64, c_void_p
from pathlib import Path

from cuda_calls import (
    INVALID_VALUE,
    MS,
    NOT_READY,
    OUT_OF_MEMORY,
    Gate,
    Work,
    allocate,
    call,
    code,
    context,
    event,
    free,
    free_bytes,
    from_device,
    made,
    near,
    query,
    record,
    stream,
    synchronize,
    to_device,
)
from cuda_calls import elapsed_ms as elapsed

MIB = 1 << 20


class _Location(ctypes.Structure):
    _fields_ = [("type", c_int), ("id", c_int)]


class _Properties(ctypes.Structure):
    _fields_ = [
        ("type", c_int),
        ("handle_types", c_int),
        ("location", _Location),
        ("win32", c_void_p),
        ("flags", c_uint64),
    ]


class _Access(ctypes.Structure):
    _fields_ = [("location", _Location), ("flags", c_int)]


class _PoolProperties(ctypes.Structure):
    _fields_ = [
        ("type", c_int),
        ("handle_types", c_int),
        ("location", _Location),
        ("win32", c_void_p),
        ("max_size", c_size_t),
        ("reserved", c_uint8 * 56),
    ]


class _Copy2D(ctypes.Structure):
    _fields_ = [
        ("src_x", c_size_t),
        ("src_y", c_size_t),
        ("src_type", c_int),
        ("src_host", c_void_p),
        ("src_device", c_uint64),
        ("src_array", c_void_p),
        ("src_pitch", c_size_t),
        ("dst_x", c_size_t),
        ("dst_y", c_size_t),
        ("dst_type", c_int),
        ("dst_host", c_void_p),
        ("dst_device", c_uint64),
        ("dst_array", c_void_p),
        ("dst_pitch", c_size_t),
        ("width", c_size_t),
        ("height", c_size_t),
    ]


class _Array(ctypes.Structure):
    _fields_ = [
        ("width", c_size_t),
        ("height", c_size_t),
        ("format", c_int),
        ("channels", c_uint32),
    ]


class _Array3D(ctypes.Structure):
    _fields_ = [
        ("width", c_size_t),
        ("height", c_size_t),
        ("depth", c_size_t),
        ("format", c_int),
        ("channels", c_uint32),
        ("flags", c_uint32),
    ]


HOST, DEVICE, ARRAY = 1, 2, 3
FLOAT = 32


def bytes_come_back_as_they_went() -> None:
    context()
    data = array.array("I", range(100_000)).tobytes()
    address = allocate(len(data))
    to_device(address, data)
    assert from_device(address, len(data)) == data
    copy = allocate(len(data))
    call("cuMemcpyDtoD_v2", c_void_p(copy), c_void_p(address), c_size_t(len(data)))
    assert from_device(copy, len(data)) == data


def memsets_write_their_pattern() -> None:
    context()
    address = allocate(64)
    call("cuMemsetD8_v2", c_void_p(address), c_uint8(0xAB), c_size_t(64))
    call("cuMemsetD16_v2", c_void_p(address + 16), c_uint16(0x1234), c_size_t(8))
    call("cuMemsetD32_v2", c_void_p(address + 32), c_uint32(0x89ABCDEF), c_size_t(4))
    data = from_device(address, 64)
    assert data[:16] == b"\xab" * 16
    assert data[16:32] == b"\x34\x12" * 8
    assert data[32:48] == b"\xef\xcd\xab\x89" * 4
    assert data[48:] == b"\xab" * 16
    assert code("cuMemsetD32_v2", c_void_p(address + 1), 0, c_size_t(1)) == INVALID_VALUE


def a_large_memset_to_zero_takes_no_host_memory() -> None:
    context()
    address = allocate(8 << 30)
    to_device(address + (4 << 30), b"\xff" * 100)
    call("cuMemsetD8_v2", c_void_p(address), c_uint8(0), c_size_t(8 << 30))
    assert from_device(address + (4 << 30), 100) == bytes(100)
    assert int(Path("/proc/self/statm").read_text().split()[1]) * 4096 < 500 * MIB


def copies_in_a_stream_keep_its_order() -> None:
    context()
    one, work = stream(), Work()
    address = allocate(4)
    host = made("cuMemHostAlloc", c_size_t(4096), 0)
    word = c_uint32.from_address(host)
    gate = Gate()
    gate.hold(one)
    word.value = 5
    call("cuMemcpyHtoDAsync_v2", c_void_p(address), c_void_p(host), c_size_t(4), c_void_p(one))
    work(one, 1 * MS)
    call("cuMemsetD32Async", c_void_p(address), c_uint32(6), c_size_t(1), c_void_p(one))
    call("cuMemcpyDtoHAsync_v2", c_void_p(host + 8), c_void_p(address), c_size_t(4), c_void_p(one))
    assert c_uint32.from_address(host + 8).value == 0
    gate.open()
    synchronize(one)
    assert c_uint32.from_address(host + 8).value == 6


def a_small_pageable_source_may_be_reused_at_once() -> None:
    context()
    one, address = stream(), allocate(1024)
    source = ctypes.create_string_buffer(b"a" * 1024, 1024)
    gate = Gate()
    gate.hold(one)
    call("cuMemcpyHtoDAsync_v2", c_void_p(address), source, c_size_t(1024), c_void_p(one))
    ctypes.memset(source, ord("b"), 1024)
    gate.open()
    synchronize(one)
    assert from_device(address, 1024) == b"a" * 1024


def a_copy_takes_the_time_of_its_link() -> None:
    """12 GB/s on a T4, and 2 us to begin."""
    context()
    one, size = stream(), 24 * 1000 * 1000
    host, address = made("cuMemHostAlloc", c_size_t(size), 0), allocate(size)
    gate = Gate()
    gate.hold(one)
    start = record(event(), one)
    call("cuMemcpyHtoDAsync_v2", c_void_p(address), c_void_p(host), c_size_t(size), c_void_p(one))
    end = record(event(), one)
    gate.open()
    synchronize(one)
    assert near(elapsed(start, end), 2.002)


def what_is_allocated_is_taken_from_the_device() -> None:
    context()
    before = free_bytes()
    address = allocate(100 * MIB)
    assert before - free_bytes() == 100 * MIB
    free(address)
    assert free_bytes() == before


def more_than_there_is_is_refused() -> None:
    context()
    available = free_bytes()
    address = c_void_p()
    assert code("cuMemAlloc_v2", byref(address), c_size_t(available + 4096)) == OUT_OF_MEMORY
    assert code("cuMemAllocAsync", byref(address), c_size_t(available + 4096), None) == OUT_OF_MEMORY
    assert code("cuMemAllocManaged", byref(address), c_size_t(1 << 50), 1) == OUT_OF_MEMORY
    held = allocate(available)
    assert free_bytes() == 0
    assert code("cuMemAlloc_v2", byref(address), c_size_t(512)) == OUT_OF_MEMORY
    free(held)
    assert free_bytes() == available
    assert code("cuMemAlloc_v2", byref(address), c_size_t(0)) == INVALID_VALUE


def a_context_takes_memory_of_its_own() -> None:
    context()
    before = free_bytes()
    second = made("cuCtxCreate_v2", 0, 0)
    assert before - free_bytes() == 300 * MIB
    call("cuCtxDestroy_v2", c_void_p(second))
    assert free_bytes() == before


def a_destroyed_context_gives_its_memory_back() -> None:
    context()
    before = free_bytes()
    second = made("cuCtxCreate_v2", 0, 0)
    allocate(50 * MIB)
    call("cuCtxDestroy_v2", c_void_p(second))
    assert free_bytes() == before


def only_what_was_allocated_can_be_freed() -> None:
    context()
    address = allocate(4096)
    buffer = ctypes.create_string_buffer(16)
    assert code("cuMemFree_v2", c_void_p(address + 512)) == INVALID_VALUE
    assert code("cuMemFree_v2", buffer) == INVALID_VALUE
    free(address)
    assert code("cuMemFree_v2", c_void_p(address)) == INVALID_VALUE
    assert code("cuMemFree_v2", None) == 0


def freeing_waits_for_what_may_use_the_memory() -> None:
    context()
    one, work = stream(), Work()
    address = allocate(4096)
    work(one, 20 * MS)
    free(address)
    assert query(one) == 0


def copies_outside_of_allocations_are_refused() -> None:
    context()
    address = allocate(4096)
    assert code("cuMemcpyHtoD_v2", c_void_p(address), b"x" * 4097, c_size_t(4097)) == INVALID_VALUE
    buffer = ctypes.create_string_buffer(16)
    assert code("cuMemcpyHtoD_v2", buffer, b"x" * 16, c_size_t(16)) == INVALID_VALUE
    assert code("cuMemcpyDtoH_v2", buffer, c_void_p(address + 4090), c_size_t(16)) == INVALID_VALUE


def a_pitch_is_aligned_and_boxes_are_copied_row_by_row() -> None:
    context()
    address, pitch = c_void_p(), c_size_t()
    call("cuMemAllocPitch_v2", byref(address), byref(pitch), c_size_t(100), c_size_t(8), c_uint32(4))
    assert pitch.value == 512
    rows = ctypes.create_string_buffer(bytes(range(100)) * 8, 800)
    box = _Copy2D(
        src_type=HOST,
        src_host=ctypes.addressof(rows),
        src_pitch=100,
        dst_type=DEVICE,
        dst_device=address.value or 0,
        dst_pitch=512,
        width=100,
        height=8,
    )
    call("cuMemcpy2D_v2", byref(box))
    data = from_device(address.value or 0, 512 * 8)
    assert data[512 * 3 : 512 * 3 + 100] == bytes(range(100))
    assert data[100:512] == bytes(412)


def pointers_tell_what_they_are() -> None:
    current = context()
    address, managed, host = allocate(4096), c_void_p(), made("cuMemHostAlloc", c_size_t(4096), 0)
    call("cuMemAllocManaged", byref(managed), c_size_t(4096), 1)
    kind, owner, base, size = c_uint32(), c_void_p(), c_uint64(), c_size_t()

    def attribute(result: object, which: int, of: int) -> int:
        return code("cuPointerGetAttribute", result, which, c_void_p(of))

    assert attribute(byref(kind), 2, address + 100) == 0
    assert kind.value == DEVICE
    assert attribute(byref(owner), 1, address) == 0
    assert owner.value == current
    assert attribute(byref(kind), 2, host) == 0
    assert kind.value == HOST
    assert attribute(byref(kind), 8, managed.value or 0) == 0
    assert kind.value == 1
    assert attribute(byref(kind), 2, ctypes.addressof(ctypes.create_string_buffer(8))) == INVALID_VALUE
    call("cuMemGetAddressRange_v2", byref(base), byref(size), c_void_p(address + 100))
    assert (base.value, size.value) == (address, 4096)


def managed_memory_is_prefetched_at_the_speed_of_its_link() -> None:
    context()
    one, size = stream(), 24 * 1000 * 1000
    managed, plain = made("cuMemAllocManaged", c_size_t(size), 1), allocate(4096)
    location = c_uint64(1)  # the first device
    gate = Gate()
    gate.hold(one)
    call("cuMemPrefetchAsync_v2", c_void_p(managed), c_size_t(size), location, 0, c_void_p(one))
    end = record(event(), one)
    gate.open()
    synchronize(one)
    assert near(elapsed(gate.event, end), 2.002)
    c_uint32.from_address(managed).value = 5
    assert from_device(managed, 4) == b"\5\0\0\0"
    assert code("cuMemAdvise_v2", c_void_p(managed), c_size_t(size), 1, location) == 0
    assert code("cuMemAdvise_v2", c_void_p(plain), c_size_t(4096), 1, location) == INVALID_VALUE


def host_memory_is_registered_once() -> None:
    context()
    buffer = ctypes.create_string_buffer(8192)
    assert code("cuMemHostRegister_v2", buffer, c_size_t(8192), 0) == 0
    assert code("cuMemHostRegister_v2", buffer, c_size_t(100), 0) == 712
    assert code("cuMemHostUnregister", buffer) == 0
    assert code("cuMemHostUnregister", buffer) == 713


def a_pool_keeps_what_its_threshold_says() -> None:
    context()
    pool, one, used, reserved = c_void_p(), stream(), c_uint64(), c_uint64()
    call("cuDeviceGetDefaultMemPool", byref(pool), 0)
    before = free_bytes()

    def attributes() -> tuple[int, int]:
        call("cuMemPoolGetAttribute", pool, 7, byref(used))
        call("cuMemPoolGetAttribute", pool, 5, byref(reserved))
        return used.value, reserved.value

    first = made("cuMemAllocAsync", c_size_t(10 * MIB), one)
    assert attributes() == (10 * MIB, 10 * MIB)
    call("cuMemFreeAsync", c_void_p(first), c_void_p(one))
    synchronize(one)
    assert attributes() == (0, 0)
    assert free_bytes() == before
    call("cuMemPoolSetAttribute", pool, 4, byref(c_uint64(1 << 40)))
    second = made("cuMemAllocAsync", c_size_t(10 * MIB), one)
    call("cuMemFreeAsync", c_void_p(second), c_void_p(one))
    synchronize(one)
    assert attributes() == (0, 10 * MIB)
    assert before - free_bytes() == 10 * MIB
    call("cuMemPoolTrimTo", pool, c_size_t(0))
    assert free_bytes() == before


def memory_of_a_pool_is_free_when_its_stream_gets_there() -> None:
    context()
    one = stream()
    address = made("cuMemAllocAsync", c_size_t(MIB), one)
    before = free_bytes()
    gate = Gate()
    gate.hold(one)
    call("cuMemFreeAsync", c_void_p(address), c_void_p(one))
    assert free_bytes() == before
    gate.open()
    synchronize(one)
    assert free_bytes() - before == MIB


def a_pool_of_ones_own_has_a_bound() -> None:
    context()
    one = stream()
    properties = _PoolProperties(type=1, location=_Location(1, 0), max_size=MIB)
    pool = made("cuMemPoolCreate", byref(properties))
    address = c_void_p()
    arguments = (c_void_p(pool), c_void_p(one))
    assert code("cuMemAllocFromPoolAsync", byref(address), c_size_t(MIB), *arguments) == 0
    assert code("cuMemAllocFromPoolAsync", byref(c_void_p()), c_size_t(512), *arguments) == OUT_OF_MEMORY
    call("cuMemPoolDestroy", c_void_p(pool))
    assert code("cuMemAllocFromPoolAsync", byref(c_void_p()), c_size_t(512), *arguments) == INVALID_VALUE
    call("cuMemFreeAsync", address, c_void_p(one))
    synchronize(one)


def _reserve_and_map(size: int, handle: int) -> int:
    address = made("cuMemAddressReserve", c_size_t(size), c_size_t(0), c_uint64(0), c_uint64(0))
    call("cuMemMap", c_void_p(address), c_size_t(size), c_size_t(0), c_uint64(handle), c_uint64(0))
    access = _Access(location=_Location(1, 0), flags=3)
    call("cuMemSetAccess", c_void_p(address), c_size_t(size), byref(access), c_size_t(1))
    return address


def _create(size: int) -> int:
    handle = c_uint64()
    properties = _Properties(type=1, handle_types=1, location=_Location(1, 0))
    call("cuMemCreate", byref(handle), c_size_t(size), byref(properties), c_uint64(0))
    return handle.value


def mapped_memory_holds_bytes_and_lives_until_it_is_unmapped() -> None:
    context()
    before, size = free_bytes(), 4 * MIB
    handle = _create(size)
    assert before - free_bytes() == size
    address = _reserve_and_map(size, handle)
    to_device(address + MIB, b"mapped")
    call("cuMemRelease", c_uint64(handle))
    assert before - free_bytes() == size
    assert from_device(address + MIB, 6) == b"mapped"
    call("cuMemUnmap", c_void_p(address), c_size_t(size))
    assert free_bytes() == before
    assert code("cuMemRelease", c_uint64(handle)) == INVALID_VALUE
    call("cuMemAddressFree", c_void_p(address), c_size_t(size))


def mappings_side_by_side_are_one_range() -> None:
    context()
    size = 2 * MIB
    first, second = _create(size), _create(size)
    address = made("cuMemAddressReserve", c_size_t(3 * size), c_size_t(0), c_uint64(0), c_uint64(0))
    access = _Access(location=_Location(1, 0), flags=3)
    for at, handle in ((address, first), (address + size, second)):
        call("cuMemMap", c_void_p(at), c_size_t(size), c_size_t(0), c_uint64(handle), c_uint64(0))
    call("cuMemSetAccess", c_void_p(address), c_size_t(2 * size), byref(access), c_size_t(1))
    to_device(address + size - 3, b"abcdef")
    assert from_device(address + size - 3, 6) == b"abcdef"
    assert code("cuMemAddressFree", c_void_p(address), c_size_t(3 * size)) == INVALID_VALUE
    call("cuMemUnmap", c_void_p(address), c_size_t(2 * size))
    call("cuMemAddressFree", c_void_p(address), c_size_t(3 * size))


def exported_memory_is_the_same_memory_and_not_charged_twice() -> None:
    context()
    size = 2 * MIB
    address = _reserve_and_map(size, handle := _create(size))
    descriptor, imported = c_int(-1), c_uint64()
    call("cuMemExportToShareableHandle", byref(descriptor), c_uint64(handle), 1, c_uint64(0))
    before = free_bytes()
    call("cuMemImportFromShareableHandle", byref(imported), c_void_p(descriptor.value), 1)
    again = _reserve_and_map(size, imported.value)
    assert free_bytes() == before
    to_device(address, b"shared")
    assert from_device(again, 6) == b"shared"


def granularity_is_asked_for_and_kept() -> None:
    context()
    granularity, properties = c_size_t(), _Properties(type=1, location=_Location(1, 0))
    call("cuMemGetAllocationGranularity", byref(granularity), byref(properties), 0)
    assert granularity.value == 2 * MIB
    handle = c_uint64()
    odd = c_size_t(granularity.value + 1)
    assert code("cuMemCreate", byref(handle), odd, byref(properties), c_uint64(0)) == INVALID_VALUE


def arrays_take_memory_and_hold_bytes() -> None:
    context()
    before = free_bytes()
    made_array = made("cuArrayCreate_v2", byref(_Array(width=100, height=10, format=FLOAT, channels=1)))
    assert before - free_bytes() == 512 * 10
    call("cuMemcpyHtoA_v2", c_void_p(made_array), c_size_t(8), b"floats..", c_size_t(8))
    buffer = ctypes.create_string_buffer(8)
    call("cuMemcpyAtoH_v2", buffer, c_void_p(made_array), c_size_t(8), c_size_t(8))
    assert buffer.raw == b"floats.."
    asked = _Array()
    call("cuArrayGetDescriptor_v2", byref(asked), c_void_p(made_array))
    assert (asked.width, asked.height) == (100, 10)
    call("cuArrayDestroy", c_void_p(made_array))
    assert free_bytes() == before


def mipmaps_have_levels() -> None:
    context()
    before = free_bytes()
    description = _Array3D(width=64, height=64, depth=0, format=FLOAT, channels=1)
    mipmap = made("cuMipmappedArrayCreate", byref(description), 3)
    assert before - free_bytes() == 512 * (64 + 32 + 16)
    level = made("cuMipmappedArrayGetLevel", mipmap, 2)
    asked = _Array3D()
    call("cuArray3DGetDescriptor_v2", byref(asked), c_void_p(level))
    assert (asked.width, asked.height) == (16, 16)
    assert code("cuMipmappedArrayGetLevel", byref(c_void_p()), c_void_p(mipmap), 3) == INVALID_VALUE
    call("cuMipmappedArrayDestroy", c_void_p(mipmap))
    assert free_bytes() == before


def nothing_is_seen_of_a_copy_before_its_stream_gets_there() -> None:
    context()
    one, address = stream(), allocate(4)
    host = made("cuMemHostAlloc", c_size_t(4096), 0)
    gate = Gate()
    gate.hold(one)
    call("cuMemsetD32Async", c_void_p(address), c_uint32(3), c_size_t(1), c_void_p(one))
    call("cuMemcpyDtoHAsync_v2", c_void_p(host), c_void_p(address), c_size_t(4), c_void_p(one))
    assert query(one) == NOT_READY
    assert c_uint32.from_address(host).value == 0
    gate.open()
    synchronize(one)
    assert c_uint32.from_address(host).value == 3
