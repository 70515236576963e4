"""Whether two programs fit into one device's memory, by what they ask for and have used: the rule without a model."""

from __future__ import annotations

from typing import Final

from muxflow_decisions.speed.facts import PairFacts

_SURE: Final = 0.92
"""Up to this share of the device's memory, both certainly fit: what drivers and fragmentation take is less."""
_UNKNOWN_ONLINE: Final = 0.5
"""Share of the memory that an online service is taken to need while nobody has seen it."""


def fits_by_memory(facts: PairFacts) -> float:
    """Probability that both fit, 0 to 1: 1 up to 92% of the memory, 0 when there is not enough, a line in between.

    The offline side counts with its quota, which it may use up at any time; the more memory is asked for, the less
    probable. A device whose memory is not known fits everything: placement looks at each GPU's own before it is used.
    """
    if not facts.gpu_memory_bytes:
        return 1.0
    total = float(facts.gpu_memory_bytes)
    offline = max(facts.memory_bytes or 0, facts.offline_memory_bytes or 0)
    online = _UNKNOWN_ONLINE * total if facts.online_memory_bytes is None else float(facts.online_memory_bytes)
    return min(max((1.0 - (offline + online) / total) / (1.0 - _SURE), 0.0), 1.0)
