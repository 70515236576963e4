"""When to look: once in each period, at a phase of its own, however long the looks take."""

from __future__ import annotations

from typing import Final

_MS_NS: Final = 1_000_000


class Rhythm:
    """Instants `phase + n × period` of one clock. A late look shifts none of the following."""

    def __init__(self, *, period_ms: int, part: float = 0.0) -> None:
        """`part` in [0, 1) places the instants within the period: GPUs of one node do not look all at once."""
        self.period_ns: Final = period_ms * _MS_NS
        self._phase_ns: Final = int(part * self.period_ns)

    def after(self, now_ns: int) -> int:
        """Give the first instant later than now."""
        whole = (now_ns - self._phase_ns) // self.period_ns
        return self._phase_ns + (whole + 1) * self.period_ns

    def missed(self, due_ns: int, now_ns: int) -> int:
        """Give how many instants after the one that was due have passed as well."""
        return max(0, now_ns - due_ns) // self.period_ns
