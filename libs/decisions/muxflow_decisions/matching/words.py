"""Numbers and sizes in sentences."""

from __future__ import annotations


def is_(number: int) -> str:
    """Agree a verb with a number."""
    return "is" if number == 1 else "are"


def count(number: int, what: str) -> str:
    """Agree a noun with its number."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def size(size_bytes: int) -> str:
    """Write a size in the largest unit that it fills."""
    for exponent, unit in ((4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")):
        if size_bytes >= 1024**exponent:
            return f"{size_bytes / 1024**exponent:.1f}".removesuffix(".0") + f" {unit}"
    return f"{size_bytes} bytes"
