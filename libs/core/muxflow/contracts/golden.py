"""Golden bytes: one encoded example of each contract, kept for each release and decoded for ever.

``python -m muxflow.contracts.golden --release 0.1.0`` writes those of the release to be tagged ``v0.1.0``.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from muxflow.contracts.event import encode
from muxflow.contracts.examples import example
from muxflow.contracts.schemas import CONTRACTS

FOLDER: Final = Path("libs/core/tests/contracts/golden")
_VERSION: Final = re.compile(r"\d+\.\d+\.\d+([a-z]+\d+)?")


def write(folder: Path, release: str) -> Path:
    """Write the golden bytes of a release into its own folder, and give back that folder.

    Raises `FileExistsError` if it is there: what was released does not change.
    """
    kept = folder / f"v{release}"
    kept.mkdir(parents=True)
    for contract in CONTRACTS:
        (kept / f"{contract.name}.json").write_bytes(encode(example(contract.kind)))
    return kept


def misread(kept: Path, kinds: Mapping[str, type[msgspec.Struct]] | None = None) -> list[str]:
    """List the files of one release that are no longer understood in full; empty if all are.

    `kinds` is what each name is decoded as; today's contracts if not given.
    """
    kinds = kinds or {contract.name: contract.kind for contract in CONTRACTS}
    return [
        f"{path.parent.name}/{path.name}: {problem}"
        for path in sorted(kept.glob("*.json"))
        if (problem := _problem(path.read_bytes(), kinds.get(path.stem)))
    ]


def _problem(data: bytes, kind: type[msgspec.Struct] | None) -> str:
    if kind is None:
        return "no contract has this name"
    try:
        decoded = msgspec.json.decode(data, type=kind)
    except msgspec.DecodeError as error:
        return str(error)
    lost = _lost(msgspec.json.decode(data), msgspec.json.decode(encode(decoded)))
    return f"{lost} is ignored or changed" if lost else ""


def _lost(written: Any, understood: Any, path: str = "$") -> str:
    """Find the first value that was written and did not arrive; more may arrive than was written."""
    if isinstance(written, dict) and isinstance(understood, dict):
        inner = (
            _lost(value, understood[name], f"{path}.{name}") if name in understood else f"{path}.{name}"
            for name, value in written.items()
        )
        return next((lost for lost in inner if lost), "")
    if isinstance(written, list) and isinstance(understood, list) and len(written) == len(understood):
        pairs = enumerate(zip(written, understood, strict=True))
        return next((lost for at, (one, other) in pairs if (lost := _lost(one, other, f"{path}[{at}]"))), "")
    return "" if written == understood else path


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; give back its exit status."""
    parser = argparse.ArgumentParser(prog="python -m muxflow.contracts.golden", description=__doc__)
    parser.add_argument("--release", required=True, metavar="VERSION", help="such as 0.1.0")
    parser.add_argument("--output", type=Path, default=FOLDER, metavar="FOLDER", help=f"default: {FOLDER}")
    options = parser.parse_args(arguments)
    if not _VERSION.fullmatch(options.release):
        parser.error(f"not a version: {options.release!r}; give it as in 0.1.0")
    try:
        kept = write(options.output, options.release)
    except FileExistsError as error:
        parser.error(f"{error.filename} exists: golden bytes of a release never change")
    sys.stdout.write(f"{kept}: {len(CONTRACTS)} files\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
