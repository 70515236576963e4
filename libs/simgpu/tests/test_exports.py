"""What the libraries export: exactly what their API has, and one table for everything that can be asked for."""

import re
import subprocess
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[1] / "src"
HEADER = Path(__file__).parents[1] / "include" / "simgpu_cuda.h"
ENTRY = re.compile(r"^(ENTRY|OWN_ENTRY|UNSUPPORTED)\((.*)\)$", re.MULTILINE)


def exports(library: Path) -> set[str]:
    listed = subprocess.run(["nm", "-D", "--defined-only", library], capture_output=True, text=True, check=True)
    return {line.split()[2] for line in listed.stdout.splitlines()}


def table() -> list[tuple[str, list[str]]]:
    """Kind and fields of every entry point."""
    found = ENTRY.findall((SOURCES / "cuda_entries.def").read_text())
    return [(kind, [field.strip() for field in fields.split(",")]) for kind, fields in found]


@pytest.mark.parametrize(("library", "prefix"), [("libcuda.so.1", "cu"), ("libnvidia-ml.so.1", "nvml")])
def test_only_the_api_is_exported(native: Path, library: str, prefix: str) -> None:
    names = exports(native / library)
    assert names
    assert not {name for name in names if not re.fullmatch(f"{prefix}[A-Z]\\w*", name)}


def test_every_entry_is_exported_and_every_export_is_an_entry(native: Path) -> None:
    named: set[str] = set()
    for kind, fields in table():
        named.update(fields[:1] if kind == "UNSUPPORTED" else fields[2:])
    assert exports(native / "libcuda.so.1") == named


def test_versions_of_a_name_lie_in_their_order() -> None:
    newest: dict[str, int] = {}
    for _, (name, version, *_functions) in table():
        assert int(version) > newest.get(name, 0), name
        newest[name] = int(version)


def test_a_name_lies_in_one_place() -> None:
    names = [fields[0] for _, fields in table()]
    changes = [name for before, name in zip(["", *names], names, strict=False) if name != before]
    assert len(changes) == len(set(changes))


def test_the_header_declares_what_is_simulated(native: Path) -> None:
    declared = set(re.findall(r"^CUresult (\w+)\(", HEADER.read_text(), re.MULTILINE))
    unsupported = {fields[0] for kind, fields in table() if kind == "UNSUPPORTED"}
    assert declared == exports(native / "libcuda.so.1") - unsupported
