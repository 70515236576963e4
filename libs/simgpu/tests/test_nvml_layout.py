"""Our description of NVML against NVIDIA's nvml.h: values, sizes, and the place of every field."""

import inspect
import re
import subprocess
from importlib.metadata import files
from pathlib import Path

import pynvml

OURS = Path(__file__).parents[1] / "src" / "nvml_api.h"

NOT_IN_THEIRS = {"nvmlEventData_v1_t"}
"""Of a call's first version, which today's header does not describe any more."""


def nvml_h() -> Path:
    return next(Path(str(path.locate())) for path in files("nvidia-nvml-dev") or [] if path.name == "nvml.h")


def structures() -> dict[str, list[str]]:
    """Names of our structures, each with its fields."""
    text = re.sub(r"/\*.*?\*/", "", OURS.read_text(), flags=re.DOTALL)
    found = {}
    for body, name in re.findall(r"typedef (?:struct|union) \{(.*?)\n\} (\w+);", text, re.DOTALL):
        flat = re.sub(r"(?:struct|union) \{.*?\}", "int", body, flags=re.DOTALL)
        found[name] = re.findall(r"(\w+)(?:\[\w+\])?;", flat)
    return {name: fields for name, fields in found.items() if name not in NOT_IN_THEIRS}


def enumerators() -> list[str]:
    text = OURS.read_text()
    theirs = nvml_h().read_text()
    found = re.findall(r"\b(NVML_\w+)\s*=", text)
    return [name for name in found if re.search(rf"\b{name}\b", theirs)]


def printed_by(header: Path, folder: Path) -> dict[str, int]:
    """What a program says that was compiled with this header."""
    lines = [f'#include "{header}"', "#include <stddef.h>", "#include <stdio.h>", "int main(void) {"]
    lines += [f'printf("{name} %lld\\n", (long long)({name}));' for name in enumerators()]
    for name, fields in structures().items():
        lines.append(f'printf("{name} %zu\\n", sizeof({name}));')
        lines += [f'printf("{name}.{field} %zu\\n", offsetof({name}, {field}));' for field in fields]
    source = folder / f"{header.parent.name}.c"
    source.write_text("\n".join([*lines, "}"]))
    program = source.with_suffix("")
    subprocess.run(["gcc", "-std=c11", "-o", program, source], check=True)
    output = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    return {name: int(value) for name, value in (line.split() for line in output.splitlines())}


def test_layouts_and_values_are_those_of_nvml_h(tmp_path: Path) -> None:
    ours = printed_by(OURS, tmp_path)
    assert ours == printed_by(nvml_h(), tmp_path)
    assert len(structures()) > 20
    assert len(enumerators()) > 80


def test_every_call_of_nvml_h_and_of_pynvml_is_exported(native: Path) -> None:
    wanted = set(re.findall(r"nvmlReturn_t DECLDIR (nvml\w+)\s*\(", nvml_h().read_text()))
    wanted |= set(re.findall(r'_nvmlGetFunctionPointer\("(\w+)"\)', inspect.getsource(pynvml)))
    library = native / "libnvidia-ml.so.1"
    symbols = subprocess.run(["nm", "-D", "--defined-only", library], check=True, capture_output=True, text=True).stdout
    exported = {line.split()[-1] for line in symbols.splitlines()}
    assert wanted <= exported
    assert {name for name in exported if not name.startswith("nvml")} == set()
