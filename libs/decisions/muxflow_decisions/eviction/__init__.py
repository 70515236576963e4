"""Putting offline work off a device: when (`order`, the evictor's part), and how each attempt is stopped (`ladder`, the
executor's).

    outcome = order.advance(memory, order.Look(sight=…), now_ns=now, policy=EvictionPolicy())
    outcome = ladder.advance(stop, ladder.Begin(cause=…), now_ns=now, policy=LadderPolicy())
"""

from __future__ import annotations

from muxflow_decisions.eviction import ladder, order
from muxflow_decisions.eviction.ladder import LadderPolicy, Step
from muxflow_decisions.eviction.order import EvictionPolicy

__all__ = ["EvictionPolicy", "LadderPolicy", "Step", "ladder", "order"]
