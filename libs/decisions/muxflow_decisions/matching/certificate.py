"""Proof that a flow is the best one, independent of the solver that found it.

With a potential p for each node, an arc u→v of cost c has the reduced cost r = c + p[u] − p[v], and every feasible flow
costs at least Σ min(0, r)·capacity − Σ supply·p. A flow that costs exactly that is optimal. Everything is an integer,
so there is no tolerance. The potentials are distances in the residual graph (Bellman–Ford), which exist if and only if
no cycle there has a negative cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec
import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from muxflow_decisions.matching.problem import CertificateError

Integers = NDArray[np.int64]

_LARGEST: Final = 2**61
"""Potentials and reduced costs stay below it, and so within 64 bits."""


class Network(msgspec.Struct, frozen=True, kw_only=True):
    """A min-cost flow problem with integer data. An arc's data stand at its number in four arrays."""

    supplies: Integers
    """One per node; positive gives, negative takes; sums to 0."""
    tails: Integers
    heads: Integers
    capacities: Integers
    costs: Integers

    @classmethod
    def of(cls, supplies: Sequence[int] | Integers, *arcs: tuple[Any, Any, Any, Any]) -> Network:
        """Join groups of arcs: each is tails, heads, capacities and costs, numbers among them standing for all."""
        groups = [np.broadcast_arrays(*(np.asarray(part, dtype=np.int64) for part in group)) for group in arcs]
        tails, heads, capacities, costs = (np.concatenate([np.atleast_1d(g[n]) for g in groups]) for n in range(4))
        return cls(
            supplies=np.asarray(supplies, dtype=np.int64), tails=tails, heads=heads, capacities=capacities, costs=costs
        )


class Certificate(msgspec.Struct, frozen=True, kw_only=True):
    """Potentials that prove a flow's cost to be the least."""

    potentials: Integers
    cost: int
    """Cost of the flow."""
    bound: int = 0
    """Least cost that any flow can have, as `verify` worked it out."""


def certify(network: Network, flow: Integers, potentials: Integers | None = None) -> Certificate:
    """Check the proof that potentials are, or find some first. CertificateError if the flow is not an optimal one."""
    if potentials is None:
        potentials = residual_potentials(network, flow)
    certificate = Certificate(potentials=potentials, cost=_cost(network, flow))
    return replace(certificate, bound=verify(network, flow, certificate))


def verify(network: Network, flow: Integers, certificate: Certificate) -> int:
    """Check a proof from the data alone, and give the bound that it proves. CertificateError if it proves nothing."""
    potentials = certificate.potentials
    if len(potentials) != len(network.supplies) or len(flow) != len(network.tails):
        raise CertificateError("a flow and a proof for another network")
    _check_range(network, potentials)
    if np.any(flow < 0) or np.any(flow > network.capacities):
        raise CertificateError("an arc carries less than nothing, or more than its capacity")
    used = np.flatnonzero(flow)
    balance = network.supplies.copy()
    np.subtract.at(balance, network.tails[used], flow[used])
    np.add.at(balance, network.heads[used], flow[used])
    if np.any(balance):
        raise CertificateError("flow is made or lost at a node")
    spent, bound = _cost(network, flow), _bound(network, potentials)
    if not spent == certificate.cost == bound:
        raise CertificateError(f"the flow costs {spent}, the proof says {certificate.cost} and proves {bound}")
    return bound


def _bound(network: Network, potentials: Integers) -> int:
    reduced = network.costs + potentials[network.tails] - potentials[network.heads]
    negative = np.flatnonzero(reduced < 0)
    return _dot(network.capacities[negative], reduced[negative]) - _dot(network.supplies, potentials)


def _cost(network: Network, flow: Integers) -> int:
    used = np.flatnonzero(flow)
    return _dot(flow[used], network.costs[used])


def _dot(left: Integers, right: Integers) -> int:
    """Sum of products in Python's integers, which never overflow."""
    return sum(a * b for a, b in zip(left.tolist(), right.tolist(), strict=True))


def _check_range(network: Network, potentials: Integers) -> None:
    for values in (network.costs, potentials):
        if len(values) and not -_LARGEST < int(values.min()) <= int(values.max()) < _LARGEST:
            raise CertificateError("costs or potentials are too large for exact arithmetic")


def residual_potentials(network: Network, flow: Integers) -> Integers:
    """Find potentials at which no arc of the residual graph has a negative reduced cost. CertificateError if there are
    none: the flow is not an optimal one.
    """
    free, used = flow < network.capacities, flow > 0
    tails = np.concatenate([network.tails[free], network.heads[used]])
    heads = np.concatenate([network.heads[free], network.tails[used]])
    costs = np.concatenate([network.costs[free], -network.costs[used]])
    order = np.argsort(heads.astype(np.uint16) if len(network.supplies) <= 2**16 else heads, kind="stable")
    tails, heads, costs = tails[order], heads[order], costs[order]
    firsts = np.flatnonzero(np.diff(heads, prepend=-1))
    reached = heads[firsts]
    distances = np.zeros_like(network.supplies)
    for _ in range(len(distances) + 1):
        _check_range(network, distances)
        found = np.minimum.reduceat(distances[tails] + costs, firsts) if len(firsts) else distances[reached]
        if np.all(found >= distances[reached]):
            return distances
        distances[reached] = np.minimum(found, distances[reached])
    raise CertificateError("a cheaper flow exists: the residual graph has a negative cycle")
