from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from muxflow_device.readings.rhythm import Rhythm

MS_NS = 1_000_000


@given(now_ns=st.integers(0, 2**62), part=st.floats(0, 0.999))
def test_the_next_instant_is_later_by_at_most_a_period_and_on_the_grid(now_ns: int, part: float) -> None:
    rhythm = Rhythm(period_ms=100, part=part)
    due_ns = rhythm.after(now_ns)
    assert now_ns < due_ns <= now_ns + rhythm.period_ns
    assert (due_ns - rhythm.after(0)) % rhythm.period_ns == 0


def test_a_late_look_does_not_shift_the_next() -> None:
    rhythm = Rhythm(period_ms=100)
    due_ns = rhythm.after(0)
    assert rhythm.after(due_ns + 30 * MS_NS) == due_ns + rhythm.period_ns


def test_looks_that_a_late_one_swallowed_are_counted() -> None:
    rhythm = Rhythm(period_ms=100)
    due_ns = rhythm.after(0)
    assert rhythm.missed(due_ns, due_ns + 99 * MS_NS) == 0
    assert rhythm.missed(due_ns, due_ns + 250 * MS_NS) == 2
    assert rhythm.after(due_ns + 250 * MS_NS) == due_ns + 3 * rhythm.period_ns


def test_gpus_of_one_node_look_one_after_the_other() -> None:
    instants = [Rhythm(period_ms=100, part=index / 8).after(0) for index in range(8)]
    assert len({instant % (100 * MS_NS) for instant in instants}) == 8
