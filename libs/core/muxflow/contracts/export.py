"""Write ``schemas/`` from the contracts, or check that it is up to date: ``python -m muxflow.contracts.export``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import yaml

from muxflow.contracts.asyncapi import asyncapi
from muxflow.contracts.schemas import CONTRACTS, schema_file, schema_of

ASYNCAPI_FILE: Final = "asyncapi.yaml"
_GENERATED: Final = ("*.schema.json", ASYNCAPI_FILE)


def generate() -> dict[str, str]:
    """Make every file: its name → its text. The same contracts give the same bytes."""
    files = {schema_file(contract.name): _json(schema_of(contract)) for contract in CONTRACTS}
    return {**files, ASYNCAPI_FILE: _yaml(asyncapi())}


def drift(folder: Path) -> list[str]:
    """Say of each generated file in which way it differs from the contracts; empty if none does."""
    wanted = generate()
    found = {path.name: path.read_text(encoding="utf-8") for path in _generated_in(folder)}
    return [
        *(f"{name}: missing" for name in sorted(wanted.keys() - found.keys())),
        *(f"{name}: no such contract" for name in sorted(found.keys() - wanted.keys())),
        *(f"{name}: out of date" for name in sorted(wanted.keys() & found.keys()) if wanted[name] != found[name]),
    ]


def write(folder: Path) -> int:
    """Make the folder as the contracts want it; give back how many files are in it."""
    folder.mkdir(parents=True, exist_ok=True)
    files = generate()
    for path in _generated_in(folder):
        if path.name not in files:
            path.unlink()
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")
    return len(files)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; give back its exit status: 1 if ``--check`` found a difference."""
    parser = argparse.ArgumentParser(prog="python -m muxflow.contracts.export", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a file differs from the contracts")
    parser.add_argument("--output", type=Path, default=Path("schemas"), metavar="FOLDER", help="default: schemas")
    options = parser.parse_args(arguments)
    folder: Path = options.output
    if not options.check:
        print(f"{folder}: {write(folder)} files")
        return 0
    differences = drift(folder)
    for difference in differences:
        print(f"{folder}/{difference}", file=sys.stderr)
    if differences:
        print(f"Repair it with: python -m muxflow.contracts.export --output {folder}", file=sys.stderr)
    return 1 if differences else 0


def _generated_in(folder: Path) -> list[Path]:
    return sorted(path for pattern in _GENERATED for path in folder.glob(pattern))


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _yaml(value: Any) -> str:
    header = "# Generated from muxflow.contracts by `make schemas`.\n"
    return header + yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=110)


if __name__ == "__main__":
    sys.exit(main())
