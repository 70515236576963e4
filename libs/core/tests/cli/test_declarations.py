"""GPUs that are declared, and settings that are given on the command line."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muxflow import inventory, toml
from muxflow.contracts import Gpu

GIB = 2**30


def test_the_same_wishes_on_the_same_node_are_the_same_gpus() -> None:
    gpus = inventory.declare(("T4:16GiB", "T4:16GiB", "A100:40GiB"), "node-1")
    assert [(gpu.kind, gpu.memory_bytes) for gpu in gpus] == [("T4", 16 * GIB), ("T4", 16 * GIB), ("A100", 40 * GIB)]
    assert len({gpu.uuid for gpu in gpus}) == 3
    assert gpus == inventory.declare(("T4:16GiB", "T4:16GiB", "A100:40GiB"), "node-1")
    assert gpus != inventory.declare(("T4:16GiB", "T4:16GiB", "A100:40GiB"), "node-2")


def test_an_inventory_is_read_as_it_was_written(tmp_path: Path) -> None:
    gpus = inventory.declare(("T4:16GiB", "A100:1.5GiB"), "node-1")
    (tmp_path / "gpus.toml").write_text(inventory.dump(gpus))
    assert inventory.load(tmp_path / "gpus.toml") == gpus


def test_the_example_in_the_messages_is_a_good_one(tmp_path: Path) -> None:
    (tmp_path / "gpus.toml").write_text(inventory.EXAMPLE)
    assert inventory.load(tmp_path / "gpus.toml") == (Gpu(uuid="GPU-1", kind="T4", memory_bytes=16 * GIB),)


@pytest.mark.parametrize("wish", ["T4", ":16GiB", "T4:", "T4:16", "T4:lots"])
def test_a_wish_that_makes_no_sense_is_named(wish: str) -> None:
    with pytest.raises(inventory.InventoryError, match=f"--gpu {wish}: .*write"):
        inventory.declare((wish,), "node-1")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "none is declared"),
        ("[[gpu]]\nuuid = 'a'\nkind = 'T4'", "missing required field `memory`"),
        ("[[gpu]]\nuuid = 'a'\nkind = 'T4'\nmemory = '16'", "has no unit"),
        ("[[gpu]]\nuuid = 'a'\nkind = 'T4'\nmemory = '1GiB'\nmem = 1", "unknown field `mem`"),
        ("[[gpu]]\nuuid = 'a'\nkind = 'T4'\nmemory = '1GiB'\n" * 2, "'a' is there already"),
        ("[[gpu]", "gpus.toml"),
    ],
)
def test_an_inventory_that_makes_no_sense_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "gpus.toml").write_text(text)
    with pytest.raises(inventory.InventoryError, match=r"gpus\.toml: ") as error:
        inventory.load(tmp_path / "gpus.toml")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "keys", "value"),
    [
        ("executor.lease_s=2", ("executor", "lease_s"), 2),
        ("scheduler.retry.first_delay_s=0.5", ("scheduler", "retry", "first_delay_s"), 0.5),
        ("log.level=debug", ("log", "level"), "debug"),
        ("executor.labels={rack = 'r1'}", ("executor", "labels"), {"rack": "r1"}),
        ("log.level=", ("log", "level"), ""),
    ],
)
def test_an_assignment_is_a_path_and_a_toml_value_or_a_word(text: str, keys: tuple[str, ...], value: Any) -> None:
    assert toml.parse_assignment(text) == (keys, value)


@pytest.mark.parametrize("text", ["executor", "lease_s=2", ".lease_s=2", "executor.=2"])
def test_an_assignment_without_section_or_value_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"write section\.key=value"):
        toml.parse_assignment(text)


def test_an_assignment_cannot_lead_through_a_value() -> None:
    with pytest.raises(ValueError, match="lease_s is not a table"):
        toml.assign({"executor": {"lease_s": 2}}, ("executor", "lease_s", "x"), 1)


values = st.recursive(
    st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.text(), st.dictionaries(st.text(), values, max_size=4), max_size=4))
def test_what_is_written_as_toml_is_read_as_it_was(tree: dict[str, Any]) -> None:
    assert tomllib.loads(toml.dump(tree)) == tree
