"""What the library shows to the programs it is loaded into."""

import re
import subprocess
from pathlib import Path

import pytest

_TABLE = Path(__file__).parents[1] / "src" / "hooks.table"

_WORK = re.compile(
    r"cu(Launch|GraphLaunch|Memcpy|Memset|MemBatch|MemAlloc|MemFree|MemCreate|MemRelease|MemMap$|MemUnmap"
    r"|Array.*(Create|Destroy)|MipmappedArray(Create|Destroy)|Ctx(Create|Destroy|Synchronize)"
    r"|DevicePrimaryCtxRe|Stream(BeginCapture|EndCapture|Begin.*Capture|Synchronize|Query|Destroy)|GetProcAddress"
    r"|MemGetInfo|DeviceTotalMem|MemPrefetch|MemDiscard|MemMapArrayAsync|EventRecord|GraphUpload"
    r"|Stream(AttachMem|BatchMemOp|WaitEvent|WaitValue|WriteValue)|(Signal|Wait)ExternalSemaphores)"
)
"""Calls that launch, allocate, free, wait, capture, put anything into a stream, or tell about memory."""

_EXCUSED = re.compile(
    r"cu(MemAllocHost|MemFreeHost"  # memory of the host
    r"|MemAllocFromPool$|MemcpyBatchAsync$"
    r"|LaunchAttribute)"
)


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


def test_every_call_of_the_driver_that_works_or_allocates_is_hooked_or_excused(simulation: None) -> None:
    driver = Path(__file__).parents[2] / "libs" / "simgpu" / "muxflow_simgpu" / "native" / "libcuda.so.1"
    hooked = set(_table())
    missing = [name for name in _exports(driver) if _WORK.match(name) and name not in hooked]
    assert [name for name in missing if not _EXCUSED.match(name)] == []


def test_the_library_needs_nothing_but_the_c_library(library: Path) -> None:
    listed = subprocess.run(["readelf", "-d", library], check=True, capture_output=True, text=True).stdout
    assert set(re.findall(r"NEEDED.*\[(.*)\]", listed)) <= {
        "libc.so.6",
        "libdl.so.2",
        "libpthread.so.0",
        "ld-linux-x86-64.so.2",
    }


@pytest.mark.parametrize("name", ["cuLaunchKernel", "cuMemAlloc_v2", "cuGetProcAddress_v2"])
def test_an_index_of_the_table_is_found_by_its_name(name: str) -> None:
    script = _TABLE.with_name("hooks.py")
    listed = subprocess.run(
        ["python3", script, "--names", _TABLE], check=True, capture_output=True, text=True
    ).stdout.splitlines()
    index = next(int(line.split()[0]) for line in listed if line.split()[1] == name)
    assert _table()[index] == name
