"""Which GPU people mean."""

from __future__ import annotations

import pytest

from muxflow.cli import gpus
from muxflow.cli.command import CommandError
from muxflow.contracts import DeviceSummary, Gpu


def device(node: str, index: int, kind: str = "T4", uuid: str = "") -> DeviceSummary:
    gpu = Gpu(uuid=uuid or f"GPU-{node}-{index}", kind=kind, memory_bytes=16 * 2**30, index=index)
    return DeviceSummary(node=node, gpu=gpu, alive=True, watched=True)


ONE_NODE = (device("vm", 0, uuid="GPU-aa11"), device("vm", 1, "A100", "GPU-aa22"), device("vm", 2, uuid="GPU-b"))
TWO_NODES = (device("a/b", 0), device("a/b", 1), device("c.d", 0, "A100"))


@pytest.mark.parametrize("words", ["1", "GPU-aa22", "GPU-aa2", "A100 #1", "a100#1", "A1001", "vm/1", "vm/A100 #1"])
def test_a_gpu_is_meant_by_index_uuid_kind_and_index_or_node(words: str) -> None:
    assert gpus.meant(words, ONE_NODE) is ONE_NODE[1]


@pytest.mark.parametrize(("words", "number"), [("a/b/0", 0), ("a/b/1", 1), ("1", 1), ("c.d/0", 2), ("A100 #0", 2)])
def test_of_several_nodes_the_node_says_which(words: str, number: int) -> None:
    assert gpus.meant(words, TWO_NODES) is TWO_NODES[number]


def test_a_whole_uuid_is_no_begin_of_another() -> None:
    longer = device("vm", 3, uuid="GPU-bb")
    assert gpus.meant("GPU-b", (*ONE_NODE, longer)) is ONE_NODE[2]


@pytest.mark.parametrize(
    ("words", "devices", "message"),
    [
        ("7", ONE_NODE, "there is no GPU '7'; there are T4 #0, A100 #1, T4 #2 of vm"),
        ("GPU-aa", ONE_NODE, "'GPU-aa' may be any of T4 #0, A100 #1 of vm"),
        ("0", TWO_NODES, "'0' may be any of a/b/0 (T4), c.d/0 (A100)"),
        ("", ONE_NODE, "there is no GPU ''; there are T4 #0, A100 #1, T4 #2 of vm"),
        ("7", ONE_NODE[:1], "there is no GPU '7'; there is T4 #0 of vm"),
        ("0", (), "there are no GPUs"),
        ("x", tuple(device("vm", index) for index in range(14)), "T4 #11 and 2 more of vm"),
    ],
)
def test_what_is_meant_by_nobody_or_by_several_is_told_with_what_there_is(
    words: str, devices: tuple[DeviceSummary, ...], message: str
) -> None:
    with pytest.raises(CommandError) as refused:
        gpus.meant(words, devices)
    assert message in str(refused.value)
