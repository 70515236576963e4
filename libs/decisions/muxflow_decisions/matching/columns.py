"""A large network solved on few of its arcs, exactly, when it is known roughly what nodes are worth.

Prices of a similar problem, such as that of a minute ago or a rougher one, tell which arcs are promising: those of low
reduced cost. The flow on these is the best one of all if no other arc has a negative reduced cost at *its* potentials;
arcs that have join, and it is solved again. Bad prices cost time and nothing else.
"""

from __future__ import annotations

from typing import Final

import msgspec
import numpy as np

from muxflow_decisions.matching.certificate import Integers, Network, residual_potentials
from muxflow_decisions.matching.optimizer import optimize

_ARCS_PER_NODE: Final = 40
"""After a minute of an ordinary fleet so many are enough for one round."""
_JOINING_PER_NODE: Final = 8
_ROUNDS: Final = 4
"""More, and the prices were of no use: the whole network is solved."""


class Solution(msgspec.Struct, frozen=True, kw_only=True):
    """A flow of least cost, and potentials that prove it."""

    flow: Integers
    potentials: Integers | None
    """None if nobody has looked for them yet."""


def optimize_with(network: Network, optional: int, prices: Integers) -> Solution:
    """Find a flow of least cost by these prices of nodes. CertificateError if there is none.

    The first `optional` arcs may be left out at first. The last node takes all.
    """
    found = _on_few_arcs(network, optional, prices)
    return found or Solution(flow=optimize(network), potentials=None)


def _on_few_arcs(network: Network, optional: int, prices: Integers) -> Solution | None:
    nodes = len(network.supplies)
    reduced = _reduced(network, optional, prices)
    most = min(_ARCS_PER_NODE * nodes, optional - 1)
    active = reduced <= np.partition(reduced, most)[most]
    for _ in range(_ROUNDS):
        chosen = np.concatenate([np.flatnonzero(active), np.arange(optional, len(network.tails))])
        part = _part(network, chosen)
        part_flow = optimize(part)
        potentials = residual_potentials(part, part_flow)
        reduced = _reduced(network, optional, potentials)
        missed = np.flatnonzero((reduced < 0) & ~active)
        if not len(missed):
            if part_flow[len(chosen) :].any():
                return None  # what is dear was cheaper than a long way round
            flow = np.zeros(len(network.tails), dtype=np.int64)
            flow[chosen] = part_flow[: len(chosen)]
            return Solution(flow=flow, potentials=potentials)
        if len(missed) > _JOINING_PER_NODE * nodes:
            missed = missed[np.argpartition(reduced[missed], _JOINING_PER_NODE * nodes)[: _JOINING_PER_NODE * nodes]]
        active[missed] = True
    return None


def _reduced(network: Network, optional: int, potentials: Integers) -> Integers:
    tails, heads = network.tails[:optional], network.heads[:optional]
    return network.costs[:optional] + potentials[tails] - potentials[heads]


def _part(network: Network, chosen: Integers) -> Network:
    """Take some of the arcs, and a dear one to the last node for whoever has no other way."""
    sources = np.flatnonzero(network.supplies > 0)
    return Network.of(
        network.supplies,
        (network.tails[chosen], network.heads[chosen], network.capacities[chosen], network.costs[chosen]),
        (sources, len(network.supplies) - 1, network.supplies[sources], 4 * int(network.costs.max()) + 1),
    )
