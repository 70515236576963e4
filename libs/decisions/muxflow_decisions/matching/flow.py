"""Which GPU classes the chosen jobs get: a min-cost flow, exact on the weights of classes, with a proof each time.

    job class ──pair──▶ GPU class ──▶ sink
        └─────stay────────▶

*Pairs.* A pair costs what its speed lacks to that of the fastest pair; what breaks ties adds up to less than one
permille over all pairs.
*Stays.* An arc beside that of a pair, for as many jobs as are placed so now, is cheaper by what a move costs: the other
arcs of a class carry its waiting jobs, whose number is given, and its moves. Jobs that cost more to move have a cheaper
arc, which fills first. Such costs are convex, so the flow is exact.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

import msgspec
import numpy as np
from msgspec.structs import replace

from muxflow_decisions.matching.certificate import Certificate, Integers, Network, certify, residual_potentials
from muxflow_decisions.matching.classes import TIE_STEPS, Classes
from muxflow_decisions.matching.columns import Solution, optimize_with
from muxflow_decisions.matching.model import Offer
from muxflow_decisions.matching.optimizer import optimize
from muxflow_decisions.matching.problem import MatchingPolicy, Weights

Prices = dict[Offer, float]
"""What one more GPU of a class would be worth, in permille of a job's speed. 0 where some are left over."""

_LARGE: Final = 50_000
"""Pairs of classes from which on it saves time to know prices first: those of an earlier solve, or of a rougher one."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """How many jobs of each class get a GPU of each class."""

    counts: Integers
    """A row for each job class, a column for each GPU class."""
    certificate: Certificate
    prices: Prices
    """For later plans; empty if this one is too small for them to matter."""


def plan(classes: Classes, jobs: Integers, policy: MatchingPolicy, prices: Prices) -> Plan:
    """Distribute so many jobs of each class, which are known to have places. CertificateError should the solver be
    wrong. Prices of a problem like this one make it faster, and never worse.
    """
    unit = 1 + 2 * int(min(jobs.sum(), classes.sizes.sum())) * TIE_STEPS  # more than all that only breaks ties
    network, rows, columns = _network(classes, jobs, policy, unit)
    pairs = int(np.count_nonzero(classes.feasible & (jobs > 0)[:, None]))
    large = pairs > _LARGE
    if large and prices:
        solution = optimize_with(network, pairs, _potentials(classes, network, prices, unit))
    elif large and policy.weights is Weights.PREDICTED:
        solution = optimize_with(network, pairs, _rough_potentials(network, unit))
    else:
        solution = Solution(flow=optimize(network), potentials=None)
    flow = solution.flow
    certificate = certify(network, flow, solution.potentials)
    counts = np.zeros(classes.feasible.shape, dtype=np.int64)
    np.add.at(counts, (rows, columns), flow[: len(rows)])
    found = _prices(classes, certificate.potentials, unit) if large else {}
    return Plan(counts=counts, certificate=certificate, prices=found)


def _network(classes: Classes, jobs: Integers, policy: MatchingPolicy, unit: int) -> tuple[Network, Integers, Integers]:
    """Build the network; also give the job class and the GPU class of its first arcs."""
    job_classes, gpu_classes = classes.feasible.shape
    sink = job_classes + gpu_classes
    costs = _costs(classes, policy, unit)
    rows, columns = np.nonzero(classes.feasible & (jobs > 0)[:, None])
    capacities = np.minimum(jobs[rows], classes.sizes[columns])
    stays = np.array(_stays(classes, policy, unit), dtype=np.int64).reshape(-1, 4).T
    dearest = int(stays[3].max(initial=0))
    every_gpu_class = np.arange(gpu_classes)
    network = Network.of(
        np.concatenate([jobs, np.zeros(gpu_classes, dtype=np.int64), [-jobs.sum()]]),
        (rows, job_classes + columns, capacities, costs[rows, columns] + dearest),
        (stays[0], job_classes + stays[1], stays[2], costs[stays[0], stays[1]] + dearest - stays[3]),
        (job_classes + every_gpu_class, sink, classes.sizes, 0),
    )
    return network, np.concatenate([rows, stays[0]]), np.concatenate([columns, stays[1]])


def _costs(classes: Classes, policy: MatchingPolicy, unit: int) -> Integers:
    """Give the cost of every pair; a permille of speed costs `unit`."""
    if policy.weights is not Weights.PREDICTED:
        return classes.ties
    lacking: Integers = int(classes.permille.max(initial=0)) - classes.permille
    return lacking * unit + classes.ties


def _stays(classes: Classes, policy: MatchingPolicy, unit: int) -> list[tuple[int, int, int, int]]:
    """Job class, GPU class, placed jobs, and what moving one of them costs: more than what only breaks ties."""
    counts = Counter(
        (number, at, policy.move_permille(job))
        for number, job_class in enumerate(classes.jobs)
        for at, placed in job_class.placed.items()
        for job in placed
    )
    return [(number, at, count, permille * unit + TIE_STEPS) for (number, at, permille), count in counts.items()]


def _rough_potentials(network: Network, unit: int) -> Integers:
    """Find potentials by whole permille, without what breaks ties: small costs are solved in half the time."""
    rough = replace(network, costs=network.costs // unit)
    return residual_potentials(rough, optimize(rough)) * unit


def _prices(classes: Classes, potentials: Integers, unit: int) -> Prices:
    """Read the prices of GPU classes off potentials."""
    gpus = potentials[len(classes.jobs) : -1]
    worth = ((potentials[-1] - gpus) / unit).tolist()
    return {members.offer: price for members, price in zip(classes.gpus, worth, strict=True)}


def _potentials(classes: Classes, network: Network, prices: Prices, unit: int) -> Integers:
    """Guess potentials by prices: each job class is worth what its best GPU class leaves it."""
    known = [prices.get(members.offer) for members in classes.gpus]
    usual = float(np.mean([price for price in known if price is not None] or [0.0]))
    potentials = np.zeros(len(network.supplies), dtype=np.int64)
    job_classes = len(classes.jobs)
    gpus = np.array([usual if price is None else price for price in known]) * unit
    potentials[job_classes:-1] = -gpus.astype(np.int64)
    best = np.full(job_classes, np.iinfo(np.int64).min // 4)
    to_gpus = network.tails < job_classes
    tails = network.tails[to_gpus]
    np.maximum.at(best, tails, potentials[network.heads[to_gpus]] - network.costs[to_gpus])
    potentials[:job_classes] = np.where(best > np.iinfo(np.int64).min // 4, best, 0)
    return potentials
