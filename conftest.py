"""The longest tests run first: what is left for the end is short, and both workers end at about the same time."""

from __future__ import annotations

import pytest

LONG_S = 100.0
"""Tests that declare a time limit from here on are long."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort long tests to the front, by their time limits; the others stay as they are."""
    items.sort(key=lambda item: -_declared_s(item))


def _declared_s(item: pytest.Item) -> float:
    marker = item.get_closest_marker("timeout")
    declared_s = float(marker.args[0]) if marker is not None and marker.args else 0.0
    return declared_s if declared_s >= LONG_S else 0.0
