"""The gate word: Python and C read it alike."""

from __future__ import annotations

import ctypes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muxflow_decisions.device.gate import Gate, GateState, combine
from muxflow_device.native.library import library
from muxflow_device.pages import word

GATES = st.builds(
    Gate, state=st.sampled_from(GateState), budget_permille=st.integers(0, 1000), window_us=st.integers(0, 65_535)
)


class CGate(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint32) for name in ("state", "budget_permille", "window_us", "epoch")]


@given(device=st.integers(0, 2**64 - 1), job=st.integers(0, 2**64 - 1))
def test_c_and_python_read_and_combine_any_two_words_alike(device: int, job: int) -> None:
    function = ctypes.CFUNCTYPE(CGate, ctypes.c_uint64, ctypes.c_uint64)(("mux_gate_combine", library()))
    both = function(device, job)
    gate, epoch = word.unpack(device)
    expected = combine(gate, word.unpack(job)[0])
    assert (both.state, both.budget_permille, both.window_us) == (
        expected.state,
        expected.budget_permille,
        expected.window_us,
    )
    assert both.epoch == epoch


@given(device=GATES, job=GATES, epoch=st.integers(0, 2**30 - 1))
def test_a_word_holds_a_gate_and_the_stricter_of_two_holds(device: Gate, job: Gate, epoch: int) -> None:
    assert word.unpack(word.pack(device, epoch)) == (device, epoch)
    function = ctypes.CFUNCTYPE(CGate, ctypes.c_uint64, ctypes.c_uint64)(("mux_gate_combine", library()))
    both = function(word.pack(device, epoch), word.pack(job, 0))
    expected = combine(device, job)
    assert (GateState(both.state), both.budget_permille, both.window_us) == (
        expected.state,
        expected.budget_permille,
        expected.window_us,
    )


@pytest.mark.parametrize(
    "gate", [Gate(state=GateState.OPEN, budget_permille=1001), Gate(state=GateState.OPEN, window_us=65_536)]
)
def test_what_has_no_place_in_a_word_is_refused(gate: Gate) -> None:
    with pytest.raises(ValueError, match=r"a (budget|window) of"):
        word.pack(gate, 0)
