"""Proof that a flow is the best one, independent of the solver that found it.

With a potential p for each node, an arc u→v of cost c has the reduced cost r = c + p[u] − p[v], and every feasible flow
costs at least Σ min(0, r)·capacity − Σ supply·p. A flow that costs exactly that is optimal. Everything is an integer,
so there is no tolerance. The potentials are distances in the residual graph (Bellman–Ford), which exist if and only if
no cycle there has a negative cost.
"""

from __future__ import annotations

import msgspec


class CertificateError(ArithmeticError):
    """A flow is not feasible, or not proved to be optimal."""


class Network(msgspec.Struct, frozen=True):
    """A min-cost flow problem with integer data. An arc's data stand at its number in four lists."""

    supplies: list[int]
    """One per node; positive gives, negative takes; sums to 0."""
    tails: list[int]
    heads: list[int]
    capacities: list[int]
    costs: list[int]

    def add(self, tail: int, head: int, capacity: int, cost: int) -> int:
        """Add an arc while the network is being built; gives its number."""
        self.tails.append(tail)
        self.heads.append(head)
        self.capacities.append(capacity)
        self.costs.append(cost)
        return len(self.tails) - 1


class Certificate(msgspec.Struct, frozen=True):
    """Potentials that prove a flow's cost to be the least."""

    potentials: tuple[int, ...]
    cost: int
    """Cost of the flow, equal to the bound that the potentials give."""


def certify(network: Network, flow: list[int]) -> Certificate:
    """Find potentials and check the proof. CertificateError if the flow is not an optimal one."""
    certificate = Certificate(_potentials(network, flow), _cost(network, flow))
    verify(network, flow, certificate)
    return certificate


def verify(network: Network, flow: list[int], certificate: Certificate) -> None:
    """Check a proof from the data alone. CertificateError if it proves nothing."""
    potentials = certificate.potentials
    balance = list(network.supplies)
    bound = -sum(supply * potential for supply, potential in zip(balance, potentials, strict=True))
    for tail, head, capacity, cost, used in zip(
        network.tails, network.heads, network.capacities, network.costs, flow, strict=True
    ):
        if not 0 <= used <= capacity:
            raise CertificateError(f"{used} on an arc of capacity {capacity}")
        balance[tail] -= used
        balance[head] += used
        bound += capacity * min(0, cost + potentials[tail] - potentials[head])
    if any(balance):
        raise CertificateError("flow is made or lost at a node")
    spent = _cost(network, flow)
    if not spent == certificate.cost == bound:
        raise CertificateError(f"the flow costs {spent}, the proof says {certificate.cost} and proves {bound}")


def _cost(network: Network, flow: list[int]) -> int:
    return sum(cost * used for cost, used in zip(network.costs, flow, strict=True))


def _potentials(network: Network, flow: list[int]) -> tuple[int, ...]:
    cheapest: dict[tuple[int, int], int] = {}
    for tail, head, capacity, cost, used in zip(
        network.tails, network.heads, network.capacities, network.costs, flow, strict=True
    ):
        if used < capacity:
            cheapest[tail, head] = min(cost, cheapest.get((tail, head), cost))
        if used > 0:
            cheapest[head, tail] = min(-cost, cheapest.get((head, tail), -cost))
    arcs = [(tail, head, cost) for (tail, head), cost in cheapest.items()]
    distances = [0] * len(network.supplies)
    for _ in range(len(distances) + 1):
        settled = True
        for tail, head, cost in arcs:
            if distances[tail] + cost < distances[head]:
                distances[head] = distances[tail] + cost
                settled = False
        if settled:
            return tuple(distances)
    raise CertificateError("a cheaper flow exists: the residual graph has a negative cycle")
