"""Measured pairs that come with MuxFlow: made on simulated GPUs by `muxflow_predictor.sample`, and labelled so."""

from __future__ import annotations

import functools
from importlib.resources import files
from pathlib import Path
from typing import Final

import msgspec

from muxflow_decisions.speed import MeasuredPair

FILE: Final = "simulated_pairs.jsonl"


def rows() -> list[MeasuredPair]:
    """Read them; none if the file is not there. Raises `msgspec.DecodeError`."""
    return read(_text())


@functools.cache
def count() -> int:
    """Count them, once."""
    return len(_text().splitlines())


def read(text: str | bytes) -> list[MeasuredPair]:
    """Read one row per line. Raises `msgspec.DecodeError`."""
    decoder = msgspec.json.Decoder(MeasuredPair)
    return [decoder.decode(line) for line in text.splitlines() if line.strip()]


def load(path: Path) -> list[MeasuredPair]:
    """Read a file of such rows. Raises OSError, `msgspec.DecodeError`."""
    return read(path.read_bytes())


def _text() -> str:
    try:
        return (files("muxflow_predictor") / "data" / FILE).read_text()
    except FileNotFoundError:
        return ""
