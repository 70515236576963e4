"""Entry points: by name, version and default stream, as the real driver hands them out; initialising; contexts."""

import ctypes
import os
from ctypes import byref, c_char_p, c_int, c_size_t, c_uint32, c_uint64, c_void_p

from cuda_calls import (
    INVALID_VALUE,
    NOT_FOUND,
    NOT_INITIALIZED,
    NOT_SUPPORTED,
    Work,
    call,
    code,
    context,
    cuda,
    function,
    launch_code,
    made,
    nanoseconds,
    stream,
    synchronize,
)

LEGACY, PER_THREAD = 1, 2


def _find(name: str, version: int, flags: int = 0) -> tuple[int, int, int]:
    """Result, address and status of a search."""
    address, status = c_void_p(), c_int(-1)
    result = code("cuGetProcAddress_v2", name.encode(), byref(address), version, c_uint64(flags), byref(status))
    return result, address.value or 0, status.value


def _exported(name: str) -> int:
    return ctypes.cast(getattr(cuda, name), c_void_p).value or 0


def the_version_that_is_asked_for_is_found() -> None:
    for name, version, exported in (
        ("cuMemAlloc", 12000, "cuMemAlloc_v2"),
        ("cuCtxCreate", 2000, "cuCtxCreate"),
        ("cuCtxCreate", 3020, "cuCtxCreate_v2"),
        ("cuCtxCreate", 8000, "cuCtxCreate_v2"),
        ("cuCtxCreate", 11040, "cuCtxCreate_v3"),
        ("cuCtxCreate", 13000, "cuCtxCreate_v4"),
        ("cuGetProcAddress", 11030, "cuGetProcAddress"),
        ("cuGetProcAddress", 12000, "cuGetProcAddress_v2"),
        ("cuStreamBeginCapture", 10000, "cuStreamBeginCapture"),
        ("cuStreamBeginCapture", 10010, "cuStreamBeginCapture_v2"),
        ("cuStreamGetCaptureInfo", 11030, "cuStreamGetCaptureInfo_v2"),
        ("cuGraphAddKernelNode", 11080, "cuGraphAddKernelNode"),
        ("cuGraphAddKernelNode", 12000, "cuGraphAddKernelNode_v2"),
        ("cuEventElapsedTime", 12000, "cuEventElapsedTime"),
        ("cuDevicePrimaryCtxRelease", 11000, "cuDevicePrimaryCtxRelease_v2"),
    ):
        assert _find(name, version) == (0, _exported(exported), 0), (name, version)


def who_asks_for_the_threads_default_stream_gets_the_variant() -> None:
    for name, exported in (
        ("cuLaunchKernel", "cuLaunchKernel_ptsz"),
        ("cuLaunchKernelEx", "cuLaunchKernelEx_ptsz"),
        ("cuMemcpyHtoD", "cuMemcpyHtoD_v2_ptds"),
        ("cuMemcpyHtoDAsync", "cuMemcpyHtoDAsync_v2_ptsz"),
        ("cuMemsetD8", "cuMemsetD8_v2_ptds"),
        ("cuMemAllocAsync", "cuMemAllocAsync_ptsz"),
        ("cuEventRecord", "cuEventRecord_ptsz"),
        ("cuGraphLaunch", "cuGraphLaunch_ptsz"),
        ("cuStreamBeginCapture", "cuStreamBeginCapture_v2_ptsz"),
        ("cuMemAlloc", "cuMemAlloc_v2"),
        ("cuCtxSynchronize", "cuCtxSynchronize"),
    ):
        assert _find(name, 12000, PER_THREAD) == (0, _exported(exported), 0), name
        plain = exported.removesuffix("_ptsz").removesuffix("_ptds")
        assert _find(name, 12000, LEGACY) == (0, _exported(plain), 0), name


def names_and_versions_that_are_none_are_told_apart() -> None:
    assert _find("cuNothing", 12000) == (NOT_FOUND, 0, 1)
    assert _find("cuMemAlloc_v2", 12000) == (NOT_FOUND, 0, 1)
    assert _find("cuLaunchKernelEx", 11050) == (NOT_FOUND, 0, 2)
    assert _find("cuMemAlloc", 12000, 3)[0] == INVALID_VALUE
    address = c_void_p()
    known = (b"cuInit", byref(address), 12000, c_uint64(0))
    assert code("cuGetProcAddress_v2", *known, None) == 0  # nobody need ask for the status
    assert address.value == _exported("cuInit")
    assert code("cuGetProcAddress_v2", b"cuNothing", byref(address), 12000, c_uint64(0), None) == NOT_FOUND
    assert code("cuGetProcAddress", *known) == 0


def what_is_not_simulated_says_so() -> None:
    context()
    for name in ("cuTexRefCreate", "cuImportExternalMemory", "cuGreenCtxCreate", "cuMulticastCreate"):
        assert code(name, None, None, None, None) == NOT_SUPPORTED
        result, address, status = _find(name, 13000)
        assert (result, status) == (0, 0)
        assert ctypes.CFUNCTYPE(c_int)(address)() == NOT_SUPPORTED
    assert code("cuGetExportTable", byref(c_void_p()), bytes(16)) == NOT_SUPPORTED


def results_have_names_and_texts() -> None:
    text = c_char_p()
    call("cuGetErrorName", 719, byref(text))
    assert text.value == b"CUDA_ERROR_LAUNCH_FAILED"
    call("cuGetErrorString", 2, byref(text))
    assert text.value == b"out of memory"
    assert code("cuGetErrorName", 12345, byref(text)) == INVALID_VALUE
    assert text.value is None


def nothing_works_before_it_is_initialised() -> None:
    assert code("cuDeviceGetCount", byref(c_int())) == NOT_INITIALIZED
    assert code("cuMemAlloc_v2", byref(c_void_p()), c_size_t(4)) == NOT_INITIALIZED
    assert code("cuInit", 1) == INVALID_VALUE
    assert code("cuInit", 0) == 0
    assert code("cuInit", 0) == 0


def nothing_works_without_a_context() -> None:
    call("cuInit", 0)
    assert code("cuMemAlloc_v2", byref(c_void_p()), c_size_t(4)) == 201
    assert code("cuStreamCreate", byref(c_void_p()), 0) == 201
    assert code("cuCtxSynchronize") == 201


def devices_tell_what_they_are() -> None:
    call("cuInit", 0)
    name, total, value = ctypes.create_string_buffer(64), c_size_t(), c_int()
    call("cuDeviceGetName", name, 64, 0)
    assert name.value == b"Tesla T4"
    call("cuDeviceTotalMem_v2", byref(total), 0)
    assert 14 << 30 < total.value < 15 << 30
    for attribute, expected in ((16, 40), (75, 7), (76, 5), (10, 32), (39, 1024), (41, 1), (115, 1)):
        call("cuDeviceGetAttribute", byref(value), attribute, 0)
        assert value.value == expected, attribute
    assert code("cuDeviceGetAttribute", byref(value), 0, 0) == INVALID_VALUE
    assert code("cuDeviceGet", byref(value), 1) == 101
    bus_id = ctypes.create_string_buffer(16)
    call("cuDeviceGetPCIBusId", bus_id, 16, 0)
    call("cuDeviceGetByPCIBusId", byref(value), bus_id)
    assert value.value == 0


def contexts_are_stacked() -> None:
    first = context()
    second = made("cuCtxCreate_v2", 0, 0)
    current = c_void_p()

    def now() -> int:
        call("cuCtxGetCurrent", byref(current))
        return current.value or 0

    assert now() == second
    call("cuCtxPopCurrent_v2", byref(current))
    assert now() == first
    call("cuCtxPushCurrent_v2", c_void_p(second))
    call("cuCtxSetCurrent", c_void_p(first))
    call("cuCtxPopCurrent_v2", None)
    assert now() == first
    call("cuCtxDestroy_v2", c_void_p(first))
    assert now() == 0
    assert code("cuCtxSetCurrent", c_void_p(first)) == 201
    call("cuCtxSetCurrent", c_void_p(second))
    Work()(0, 1000)
    synchronize(0)


def the_primary_context_is_one_and_counted() -> None:
    call("cuInit", 0)
    first = made("cuDevicePrimaryCtxRetain", 0)
    assert made("cuDevicePrimaryCtxRetain", 0) == first
    flags, active = c_uint32(), c_int()
    call("cuDevicePrimaryCtxRelease_v2", 0)
    call("cuDevicePrimaryCtxGetState", 0, byref(flags), byref(active))
    assert active.value == 1
    assert code("cuCtxDestroy_v2", c_void_p(first)) == 201
    call("cuDevicePrimaryCtxRelease_v2", 0)
    call("cuDevicePrimaryCtxGetState", 0, byref(flags), byref(active))
    assert active.value == 0
    assert code("cuDevicePrimaryCtxRelease_v2", 0) == 201


def a_destroyed_context_is_known_as_such() -> None:
    first = context()
    one = stream()
    call("cuCtxDestroy_v2", c_void_p(first))
    call("cuCtxSetCurrent", c_void_p(made("cuCtxCreate_v2", 0, 0)))
    assert code("cuStreamSynchronize", c_void_p(one)) == 400


def a_child_has_no_part_in_its_parents_contexts() -> None:
    context()
    one, work = stream(), Work()
    work(one, 1000)
    child = os.fork()
    if child == 0:
        fails = (code("cuInit", 0), code("cuCtxSynchronize"), code("cuStreamSynchronize", c_void_p(one)))
        os._exit(0 if fails == (NOT_INITIALIZED,) * 3 else 1)
    assert os.waitpid(child, 0)[1] == 0
    synchronize(one)
    work(one, 1000)
    synchronize(one)


def a_child_may_run_a_program_of_its_own() -> None:
    child = os.fork()  # before the parent has initialised: the child is a process like any other
    if child == 0:
        context()
        Work()(0, 1000)
        synchronize(0)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    context()


def an_execution_affinity_bounds_the_sms_only_under_mps() -> None:
    context()
    sm_count = (c_uint32 * 2)()
    call("cuCtxGetExecAffinity", byref(sm_count), 0)
    assert sm_count[1] == 40


def a_fault_is_for_good() -> None:
    context()
    one = stream()
    assert launch_code(function("fault"), one, nanoseconds(1000)) == 0
    assert code("cuStreamSynchronize", c_void_p(one)) == 700
    assert code("cuMemAlloc_v2", byref(c_void_p()), c_size_t(4)) == 700
    assert code("cuStreamQuery", c_void_p(one)) == 700
    assert code("cuStreamCreate", byref(c_void_p()), 0) == 700
    assert code("cuCtxGetCurrent", byref(c_void_p())) == 0
    assert code("cuCtxCreate_v2", byref(c_void_p()), 0, 0) == 700
