"""The solver of flows: OR-Tools. What it says is believed only with a certificate."""

from __future__ import annotations

import numpy as np
from ortools.graph.python import min_cost_flow

from muxflow_decisions.matching.certificate import Integers, Network
from muxflow_decisions.matching.problem import CertificateError


def optimize(network: Network) -> Integers:
    """Find a flow of least cost: what each arc carries. CertificateError if it finds none."""
    solver = min_cost_flow.SimpleMinCostFlow()
    arcs = solver.add_arcs_with_capacity_and_unit_cost(
        network.tails.astype(np.int32), network.heads.astype(np.int32), network.capacities, network.costs
    )
    solver.set_nodes_supplies(np.arange(len(network.supplies), dtype=np.int32), network.supplies)
    status = solver.solve()
    if status != solver.OPTIMAL:
        raise CertificateError(f"the solver found no flow: {status}")
    return np.asarray(solver.flows(arcs), dtype=np.int64)
