"""What the library shows to the programs it is loaded into."""

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest

from muxflow_simgpu import native_dir

_TABLE = Path(__file__).parents[1] / "src" / "hooks.table"

_DRIVER_SYMBOLS = Path(__file__).with_name("driver_symbols.txt")

_NOT_HOOKED = {
    "tells about objects and devices, and nothing about how much memory is left": (
        r"cu\w*?(Get(?!Info|ExportTable)\w*|Is[A-Z]\w+|Query|Enumerate\w+|FindInClone|DebugDotPrint|CanAccessPeer)"
        r"|cuOccupancy\w+|cuDeviceComputeCapability|cuEventElapsedTime|cuStreamGetCaptureInfo"
    ),
    "sets what an object is or says, of this process alone": (
        r"cu(Ctx|Device|DevicePrimaryCtx|Stream|Graph\w*|Func|Kernel|Module|Mem|MemPool|Pointer|Coredump|GL|Graphics"
        r"|TexRef|SurfRef|Param)\w*?(Set[A-Za-z]|SetAttribute|CopyAttributes|ResetPersistingL2Cache)\w*"
        r"|cuTensorMap\w+|cuMemAdvise"
    ),
    "begins, or is of the driver itself": (
        r"cuInit|cuThreadExchangeStreamCaptureMode|cuLogs\w+|cuProfiler\w+|cuCoredump\w+"
        r"|cuDevice(Una?r|R)egisterAsyncNotification|cuFlushGPUDirectRDMAWrites"
    ),
    "makes and drops objects that hold no memory of the device worth counting, and take none of its time": (
        r"cu(Stream|Event|TexObject|TexRef|SurfObject|UserObject|GreenCtx|GreenCtxStream|GraphConditionalHandle|Link"
        r"|DevResource|DevSmResource)(Create|Destroy|Retain|Release|Split|Generate|Add|Complete)\w*|cuCtxFromGreenCtx"
        r"|cuGraph(Retain|Release)UserObject"
    ),
    "says which of a thread's or a device's contexts is meant": (
        r"cuCtx(Push|Pop)Current|cuCtxAttach|cuCtx(En|Dis)ablePeerAccess"
    ),
    "ends a context that cuCtxCreate made, which stays charged until the process ends: withdrawn since CUDA 4": (
        r"cuCtxDetach"
    ),
    "describes a graph: it works, and takes memory, when it is launched": (
        r"cuGraph(Create|Clone|Destroy|DestroyNode|ExecUpdate|Add(Dependencies|(BatchMemOp|ChildGraph|Empty|EventRecord"
        r"|EventWait|ExternalSemaphoresSignal|ExternalSemaphoresWait|Host|Kernel|Memcpy|MemFree|Memset)Node)"
        r"|RemoveDependencies)|cuStreamUpdateCaptureDependencies"
    ),
    "loads code, whose memory the monitor sees": (r"cu(Module|Library)(Load\w*|Unload)|cuFuncLoad"),
    "memory of the host": (r"cuMem(AllocHost|FreeHost|HostAlloc|HostRegister|HostUnregister)"),
    "addresses without memory": (
        r"cuMemAddress(Reserve|Free)|cuMulticast(AddDevice|Bind\w+|Create|Unbind)|cuLogicalEndpoint\w+"
    ),
    "memory or marks of another process, or of another driver: charged there": (
        r"cuIpc\w+|cuImportExternal\w+|cuDestroyExternal\w+|cuExternalMemory\w+|cuMem(Export|Import)\w+"
        r"|cuMemPool(Export|Import)\w+"
    ),
    "OpenGL, EGL, VDPAU: frames come from a display driver, which a container for computing lacks": (
        r"cuEGL\w+|cuGL\w+|cuVDPAU\w+|cuEventCreateFromEGLSync|cuGraphics(\w+Register\w+|UnregisterResource)"
    ),
    "the runtime's own agreements with its driver, which are secret: the runtime launches by cuGetProcAddress": (
        r"cuGetExportTable"
    ),
    "one process is frozen and thawed by another": (r"cuCheckpoint\w+"),
}
"""Reasons why calls need no hook, and the calls. A call of a new kind is in none, and has to be looked at."""

_OF_CUDA_3 = {
    f"cu{name}"
    for name in (
        "Array3DCreate", "ArrayCreate", "DeviceTotalMem", "MemAlloc", "MemAllocPitch", "MemFree", "MemGetInfo",
        "Memcpy2D", "Memcpy2DAsync", "Memcpy2DUnaligned", "Memcpy3D", "Memcpy3DAsync", "MemcpyAtoA", "MemcpyAtoD",
        "MemcpyAtoH", "MemcpyAtoHAsync", "MemcpyDtoA", "MemcpyDtoD", "MemcpyDtoDAsync", "MemcpyDtoH",
        "MemcpyDtoHAsync", "MemcpyHtoA", "MemcpyHtoAAsync", "MemcpyHtoD", "MemcpyHtoDAsync", "MemsetD8", "MemsetD16",
        "MemsetD32", "MemsetD2D8", "MemsetD2D16", "MemsetD2D32",
    )
}  # fmt: skip
"""Calls that have been replaced by a _v2 in CUDA 3.2: their addresses and sizes have 32 bits, so that no program with
64 bits has a use for them.
"""

_SUFFIX = re.compile(r"(_v\d+)?(_pt[ds][sz])?$")


def _table() -> list[str]:
    names = []
    for line in _TABLE.read_text().splitlines():
        if line and not line.startswith("#"):
            first, *suffixes = (name.strip() for name in line.split("|")[1].split(","))
            names += [first + suffix for suffix in ("", *suffixes)]
    return names


def _exports(library: Path) -> list[str]:
    listed = subprocess.run(["nm", "-D", "--defined-only", library], check=True, capture_output=True, text=True).stdout
    return [line.split()[-1] for line in listed.splitlines()]


def test_the_library_exports_exactly_what_the_table_lists(library: Path) -> None:
    assert sorted(_exports(library)) == sorted(_table())


def test_no_function_is_in_the_table_twice() -> None:
    names = _table()
    assert sorted(names) == sorted(set(names))


def _package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(next(iter(spec.submodule_search_locations)))


def _unexplained(names: Iterable[str]) -> list[str]:
    """The calls of a driver that are neither hooked nor known to need no hook."""
    known = _OF_CUDA_3.union(_table())
    kinds = re.compile("|".join(_NOT_HOOKED.values()))
    return [name for name in names if name not in known and not kinds.fullmatch(_SUFFIX.sub("", name))]


def test_every_call_of_a_real_driver_is_hooked_or_needs_no_hook() -> None:
    lines = _DRIVER_SYMBOLS.read_text().splitlines()
    names = [line for line in lines if not line.startswith("#")]
    assert names == sorted(names)
    assert len(names) > 600
    assert _unexplained(names) == []


def test_every_call_that_the_newest_bindings_know_is_hooked_or_needs_no_hook() -> None:
    """Newer than any driver that is at hand: cuda-bindings calls each function of the version that it is made for."""
    declared = (_package("cuda.bindings") / "_internal" / "driver.pxd").read_text()
    names = re.findall(r"\b_(cu[A-Z]\w+)\(", declared)
    assert len(names) > 500
    assert _unexplained(names) == []


def test_every_call_of_the_simulated_driver_is_hooked_or_needs_no_hook(simulation: None) -> None:
    assert _unexplained(name for name in _exports(native_dir() / "libcuda.so.1") if re.match("cu[A-Z]", name)) == []


def test_every_version_of_nvmls_word_about_memory_is_hooked() -> None:
    header = next(_package("nvidia").glob("**/nvml.h")).read_text()
    names = set(re.findall(r"\bDECLDIR (nvmlDeviceGetMemoryInfo\w*)\(", header))
    assert len(names) > 1
    assert names <= {*_table()}


@pytest.mark.parametrize("name", ["cuLaunchKernelAgain", "cuMemAllocFromPeer", "cuMemcpyDtoDBatch", "cuStreamWaitFor"])
def test_a_call_of_a_new_kind_would_be_noticed(name: str) -> None:
    assert _unexplained([name, f"{name}_v2_ptsz"]) == [name, f"{name}_v2_ptsz"]


def test_what_needs_no_hook_has_none() -> None:
    assert _OF_CUDA_3.isdisjoint(_table())
    assert {f"{name}_v2" for name in _OF_CUDA_3} <= {*_table()}


def test_the_library_needs_nothing_but_the_c_library(library: Path) -> None:
    listed = subprocess.run(["readelf", "-d", library], check=True, capture_output=True, text=True).stdout
    assert set(re.findall(r"NEEDED.*\[(.*)\]", listed)) <= {
        "libc.so.6",
        "libdl.so.2",
        "libpthread.so.0",
        "ld-linux-x86-64.so.2",
    }


def test_the_page_about_hooks_is_what_the_table_says() -> None:
    script = _TABLE.with_name("hooks.py")
    written = subprocess.run(["python3", script, "--markdown", _TABLE], check=True, capture_output=True, text=True)
    page = _TABLE.parents[2] / "docs" / "reference" / "xcuda-hooks.md"
    assert page.read_text() == written.stdout, "make -C xcuda-preload reference"


@pytest.mark.skipif(shutil.which("valgrind") is None, reason="there is no valgrind here")
def test_a_program_without_cuda_pays_for_one_small_library_and_one_look(library: Path) -> None:
    def instructions(**variables: str) -> int:
        done = subprocess.run(
            ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", "/bin/true"],
            env={"PATH": os.environ["PATH"], **variables}, check=True, capture_output=True, text=True,
        )  # fmt: skip
        found = re.search(r"Collected : (\d+)", done.stderr)
        assert found, done.stderr
        return int(found[1])

    assert instructions(LD_PRELOAD=str(library)) - instructions() <= 50_000  # an empty library takes 10,000


@pytest.mark.parametrize("name", ["cuLaunchKernel", "cuMemAlloc_v2", "cuGetProcAddress_v2"])
def test_an_index_of_the_table_is_found_by_its_name(name: str) -> None:
    script = _TABLE.with_name("hooks.py")
    listed = subprocess.run(
        ["python3", script, "--names", _TABLE], check=True, capture_output=True, text=True
    ).stdout.splitlines()
    index = next(int(line.split()[0]) for line in listed if line.split()[1] == name)
    assert _table()[index] == name


def test_the_c_librarys_functions_have_no_index_wherever_they_stand_in_the_table(tmp_path: Path) -> None:
    table = tmp_path / "table"
    table.write_text("libc | dlsym\npass | cuInit | unsigned int flags | DRIVER\n")
    script = _TABLE.with_name("hooks.py")
    listed = subprocess.run(["python3", script, "--names", table], check=True, capture_output=True, text=True).stdout
    assert listed == "0 cuInit\n"
