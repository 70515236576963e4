"""Modules from PTX: what is found in them, and what kernels declare of their cost."""

import ctypes
import tempfile
from ctypes import byref, c_int, c_size_t, c_uint32, c_uint64, c_void_p
from pathlib import Path

from cuda_calls import (
    INVALID_VALUE,
    KERNELS,
    MS,
    NOT_FOUND,
    US,
    Gate,
    Word,
    after_gate,
    call,
    code,
    context,
    cuda,
    from_device,
    function,
    launch,
    launch_code,
    made,
    module,
    nanoseconds,
    near,
    stream,
    synchronize,
    to_device,
)

HEAD = b".version 6.4\n.target sm_70\n.address_size 64\n"
INVALID_PTX = 218


def _kernel(cost: str, parameters: str = ".param .u64 a, .param .u32 b") -> bytes:
    return HEAD + f"// simgpu: {cost}\n.visible .entry k({parameters}) {{ ret; }}\n".encode()


def _error_log(source: bytes) -> tuple[int, str]:
    """Result and JIT error log of loading a module."""
    log = ctypes.create_string_buffer(1024)
    options = (c_int * 2)(5, 6)
    values = (c_void_p * 2)(ctypes.addressof(log), len(log))
    result = code("cuModuleLoadDataEx", byref(c_void_p()), source + b"\0", 2, options, values)
    return result, log.value.decode()


def the_shipped_kernels_are_all_there() -> None:
    context()
    loaded, count = module(), c_uint32()
    for name in ("spin", "spin_count", "stream", "wait_word", "fault", "undeclared"):
        assert function(name, loaded)
    call("cuModuleGetFunctionCount", byref(count), c_void_p(loaded))
    assert count.value == 6
    assert code("cuModuleGetFunction", byref(c_void_p()), c_void_p(loaded), b"nothing") == NOT_FOUND


def parameters_have_sizes_and_places() -> None:
    context()
    source = (
        HEAD
        + b"""
    .visible .entry k(
        .param .u8 flag,               // at 0
        .param .u64 .ptr .global .align 16 pointer,
        .param .f32 number,
        .param .align 8 .b8 structure[20],
        .param .u16 last
    ) { ret; }
    """
    )
    kernel = function("k", module(source))
    found = []
    for index in range(5):
        offset, size = c_size_t(), c_size_t()
        call("cuFuncGetParamInfo", c_void_p(kernel), c_size_t(index), byref(offset), byref(size))
        found.append((offset.value, size.value))
    assert found == [(0, 1), (16, 8), (24, 4), (32, 20), (52, 2)]
    past = c_size_t()
    assert code("cuFuncGetParamInfo", c_void_p(kernel), c_size_t(5), byref(past), None) == INVALID_VALUE


def a_cost_stands_before_the_entry_or_inside_it() -> None:
    context()
    before = _kernel("duration_ns=2000000 sm_pct=10", "")
    inside = HEAD + b".entry k() {\n  // simgpu: duration_ns=2000000 sm_pct=10\n  { ret; }\n}\n"
    for source in (before, inside):
        kernel, one = function("k", module(source)), stream()

        def put(kernel: int = kernel, one: int = one) -> None:
            launch(kernel, one)

        (end,) = after_gate(Gate(), (one, put))
        assert near(end, 2)


def durations_can_be_products_with_a_parameter() -> None:
    context()
    for cost in ("duration_ns=param0*1000 sm_pct=10", "duration_ns=1000*param0 sm_pct=10"):
        kernel, one = function("k", module(_kernel(cost))), stream()

        def put(kernel: int = kernel, one: int = one) -> None:
            launch(kernel, one, nanoseconds(3000), c_uint32(0))

        (end,) = after_gate(Gate(), (one, put))
        assert near(end, 3)


def bytes_take_the_time_of_memory() -> None:
    """A T4 moves 320 GB/s: 160 MB at half of that take 1 ms."""
    context()
    kernel, one = function("k", module(_kernel("bytes=param0 sm_pct=10 bandwidth_pct=50"))), stream()
    (end,) = after_gate(Gate(), (one, lambda: launch(kernel, one, nanoseconds(160_000_000), c_uint32(0))))
    assert near(end, 1)


def a_share_by_the_grid_counts_blocks_that_fit() -> None:
    """Blocks of 1024 threads: one for each of a T4's 40 SMs. 20 blocks each fill half of it, so both fit."""
    context()
    kernel, one, two = function("spin"), stream(), stream()
    half = after_gate(
        Gate(),
        (one, lambda: launch(kernel, one, nanoseconds(4 * MS), grid=20, block=1024)),
        (two, lambda: launch(kernel, two, nanoseconds(4 * MS), grid=20, block=1024)),
    )
    assert near(half[0], 4)
    assert near(half[1], 4)
    full = after_gate(
        Gate(),
        (one, lambda: launch(kernel, one, nanoseconds(4 * MS), grid=40, block=1024)),
        (two, lambda: launch(kernel, two, nanoseconds(4 * MS), grid=9999, block=1024)),
    )
    assert near(full[0], 8)
    assert near(full[1], 8)


def a_kernel_that_declares_nothing_takes_10_us_a_wave() -> None:
    context()
    kernel, one = function("undeclared"), stream()
    (one_wave,) = after_gate(Gate(), (one, lambda: launch(kernel, one, grid=40, block=1024)))
    (three_waves,) = after_gate(Gate(), (one, lambda: launch(kernel, one, grid=81, block=1024)))
    assert near(one_wave, 0.01)
    assert near(three_waves, 0.03)


def nonsense_is_refused_with_its_line() -> None:
    context()
    for cost, words in {
        "duration=5": "'duration=5' is unknown",
        "duration_ns=fast": "'duration_ns=fast' is neither a number nor a parameter",
        "duration_ns=5us": "'duration_ns=5us' is neither a number nor a parameter",
        "duration_ns=param2": "'duration_ns=param2' names a parameter that the kernel does not have",
        "duration_ns=1 sm_pct=101": "'sm_pct=101' is no percentage",
        "duration_ns=1 sm_pct=0": "'sm_pct=0' is no percentage",
        "duration_ns=1 duration_ns=2": "'duration_ns=2' is given twice",
        "sm_pct=10": "'cost' needs one of duration_ns, bytes and wait_word",
        "duration_ns=1 bytes=2": "'cost' needs one of duration_ns, bytes and wait_word",
        "bytes=100": "'cost' gives bytes without the bandwidth_pct at which they are moved",
        "wait_word=param1": "'wait_word=param1' is no parameter that holds an address",
        "duration_ns=1 fault=bad": "'fault=bad' is neither",
    }.items():
        result, log = _error_log(_kernel(cost))
        assert result == INVALID_PTX, cost
        assert "line 4;" in log, log
        assert words in log, log


def declarations_belong_to_one_kernel() -> None:
    context()
    cost = b"// simgpu: duration_ns=1\n"
    for source, words in {
        HEAD + cost + cost + b".entry k() { ret; }": "a second declaration",
        HEAD + b".entry k() { ret; }\n" + cost: "no kernel follows",
        HEAD + b".func f() {\n" + cost + b"ret; }": "outside of kernels",
    }.items():
        result, log = _error_log(source)
        assert result == INVALID_PTX
        assert words in log, log


def what_is_no_ptx_is_refused() -> None:
    context()
    for source in (b"hello", b"", b".visible .entry k() { ret; }", HEAD + b".entry k() { ret;"):
        assert code("cuModuleLoadData", byref(c_void_p()), source + b"\0\0\0\0") == INVALID_PTX
    assert code("cuModuleLoadData", byref(c_void_p()), b"\x7fELF\2\1\1\0") == 209
    assert code("cuModuleLoad", byref(c_void_p()), b"/nonexistent") == 301


def a_module_is_loaded_from_its_file() -> None:
    context()
    loaded = made("cuModuleLoad", bytes(KERNELS))
    assert function("spin", loaded)
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(b"no ptx")
        assert code("cuModuleLoad", byref(c_void_p()), file.name.encode()) == INVALID_PTX


def global_variables_have_addresses() -> None:
    context()
    loaded = module(HEAD + b".visible .global .align 8 .b8 table[64];\n.global .u32 one = 1;\n.entry k() { ret; }")
    address, size = c_void_p(), c_size_t()
    call("cuModuleGetGlobal_v2", byref(address), byref(size), c_void_p(loaded), b"table")
    assert size.value == 64
    to_device(address.value or 0, b"x" * 64)
    assert from_device(address.value or 0, 64) == b"x" * 64
    call("cuModuleGetGlobal_v2", byref(address), byref(size), c_void_p(loaded), b"one")
    assert size.value == 4
    assert code("cuModuleGetGlobal_v2", byref(address), None, c_void_p(loaded), b"two") == NOT_FOUND


def libraries_give_kernels_before_there_is_a_context() -> None:
    call("cuInit", 0)
    source = KERNELS.read_bytes() + b"\0"
    library = c_void_p()
    call("cuLibraryLoadData", byref(library), source, None, None, 0, None, None, 0)
    kernel = made("cuLibraryGetKernel", library, b"spin_count")
    context()
    one, word = stream(), Word()
    launch(made("cuKernelGetFunction", kernel), one, nanoseconds(1), c_uint64(word.address))
    launch(kernel, one, nanoseconds(1), c_uint64(word.address))
    synchronize(one)
    assert word.value == 2


def launches_that_no_device_could_run_are_refused() -> None:
    context()
    kernel, one = function("spin"), stream()
    value = nanoseconds(1)
    assert launch_code(kernel, one, value, grid=0) == INVALID_VALUE
    assert launch_code(kernel, one, value, block=1025) == INVALID_VALUE
    assert launch_code(kernel, one, value, shared=100_000) == INVALID_VALUE
    missing = cuda.cuLaunchKernel(c_void_p(kernel), 1, 1, 1, 1, 1, 1, 0, None, None, None)
    assert missing == INVALID_VALUE
    cooperative = "cuLaunchCooperativeKernel"
    parameters = (c_void_p * 1)(ctypes.addressof(value))
    arguments = (1, 1, 32, 1, 1, 0, c_void_p(one), parameters)
    assert code(cooperative, c_void_p(kernel), 40 * 16 + 1, *arguments) == 720
    assert code(cooperative, c_void_p(kernel), 40 * 16, *arguments) == 0
    synchronize(one)


def parameters_may_come_packed() -> None:
    context()
    kernel, one, word = function("spin_count"), stream(), Word()
    packed = (c_uint64 * 2)(1000, word.address)
    size = c_size_t(16)
    extra = (c_void_p * 5)(1, ctypes.addressof(packed), 2, ctypes.addressof(size), 0)
    launched = cuda.cuLaunchKernel(c_void_p(kernel), 1, 1, 1, 1, 1, 1, 0, c_void_p(one), None, extra)
    assert launched == 0
    synchronize(one)
    assert word.value == 1
    size.value = 8
    launched = cuda.cuLaunchKernel(c_void_p(kernel), 1, 1, 1, 1, 1, 1, 0, c_void_p(one), None, extra)
    assert launched == INVALID_VALUE


def the_calls_of_old_still_launch() -> None:
    context()
    kernel, word = function("spin_count"), Word()
    call("cuFuncSetBlockShape", c_void_p(kernel), 32, 1, 1)
    call("cuParamSetSize", c_void_p(kernel), 16)
    for offset, value in ((0, 10 * US), (8, word.address)):
        call("cuParamSetv", c_void_p(kernel), offset, byref(c_uint64(value)), 8)
    call("cuLaunchGrid", c_void_p(kernel), 2, 1)
    call("cuCtxSynchronize")
    assert word.value == 1


def occupancy_is_that_of_the_kind() -> None:
    context()
    kernel, blocks, grid, block = function("spin"), c_int(), c_int(), c_int()
    name = "cuOccupancyMaxActiveBlocksPerMultiprocessor"
    call(name, byref(blocks), c_void_p(kernel), 256, c_size_t(0))
    assert blocks.value == 4
    call(name, byref(blocks), c_void_p(kernel), 32, c_size_t(0))
    assert blocks.value == 16
    call("cuOccupancyMaxPotentialBlockSize", byref(grid), byref(block), c_void_p(kernel), None, c_size_t(0), 0)
    assert (grid.value, block.value) == (40, 1024)
