"""Sizes of memory as people write them: ``8GiB``, ``512Mi``, ``16GB``."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Final

_BYTES_OF: Final = {
    "B": 1,
    **{f"{letter}{suffix}": 1000**n for n, letter in enumerate("KMGT", 1) for suffix in ("", "B")},
    **{f"{letter}{suffix}": 1024**n for n, letter in enumerate("KMGT", 1) for suffix in ("i", "iB")},
}
_FORM: Final = re.compile(r"(\d{1,15}(?:\.\d{1,9})?)\s*([A-Za-z]*)", re.ASCII)


def parse_size(text: str) -> int:
    """Read a size as bytes: a number and a unit. ``GiB`` and ``Gi`` are 2³⁰ bytes, ``GB`` and ``G`` are 10⁹.

    Raises ValueError, with how to write it, for anything else; a number without a unit too, as it is mostly meant
    otherwise than in bytes.
    """
    match = _FORM.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a size; write a number and a unit, such as 8GiB or 512MiB")
    number, unit = match.groups()
    if not unit:
        raise ValueError(f"{text!r} has no unit; write {number}GiB, {number}MiB or {number}B")
    factor = next((size for name, size in _BYTES_OF.items() if name.lower() == unit.lower()), None)
    if factor is None:
        raise ValueError(f"{text!r} has the unknown unit {unit!r}; known are B, MiB, GiB, TiB, MB, GB, TB")
    return int(Decimal(number) * factor)


def format_size(size_bytes: int) -> str:
    """Write a size for people: the largest binary unit of which there is at least one, at most one decimal."""
    for exponent, unit in ((4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")):
        if size_bytes >= 1024**exponent:
            return f"{size_bytes / 1024**exponent:.1f}".removesuffix(".0") + unit
    return f"{size_bytes}B"
