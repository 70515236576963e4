"""The proof of a flow: it accepts the best flow, and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from muxflow_decisions.matching import CertificateError, Need, Offer, OpenGpu, Problem, WaitingJob, flow
from muxflow_decisions.matching.certificate import Integers, Network, certify, verify
from muxflow_decisions.matching.classes import Classes, classify
from muxflow_decisions.matching.optimizer import optimize
from muxflow_decisions.matching.participants import participants
from muxflow_decisions.matching.precedence import Precedence, check, decide
from muxflow_decisions.matching.solve import solve


def integers(*values: int) -> Integers:
    return np.array(values, dtype=np.int64)


DIAMOND = Network(
    supplies=integers(2, 0, 0, -2),
    tails=integers(0, 0, 1, 2, 1),
    heads=integers(1, 2, 3, 3, 2),
    capacities=integers(2, 2, 1, 2, 1),
    costs=integers(1, 4, 1, 1, 1),
)
"""Two units from node 0 to node 3; the cheapest flow sends them over 1, one of them on through 2."""
BEST = integers(2, 0, 1, 1, 1)


def test_an_optimal_flow_gets_a_certificate_that_verifies() -> None:
    certificate = certify(DIAMOND, BEST)
    assert certificate.cost == certificate.bound == 5
    assert verify(DIAMOND, BEST, certificate) == 5


@pytest.mark.parametrize(
    ("tampered", "why"),
    [
        ((1, 1, 1, 1, 0), "negative cycle"),
        ((0, 2, 0, 2, 0), "negative cycle"),
        ((2, 0, 2, 0, 0), "capacity"),
        ((2, 0, 1, 2, -1), "less than nothing"),
        ((2, 0, 1, 0, 1), "made or lost"),
        ((1, 0, 1, 0, 0), "made or lost"),
    ],
)
def test_a_flow_that_is_dearer_or_impossible_gets_none(tampered: tuple[int, ...], why: str) -> None:
    with pytest.raises(CertificateError, match=why):
        certify(DIAMOND, integers(*tampered))


@given(st.integers(0, 3), st.integers(-100, 100).filter(bool))
def test_a_certificate_with_another_potential_proves_less(node: int, change: int) -> None:
    certificate = certify(DIAMOND, BEST)
    potentials = certificate.potentials.copy()
    potentials[node] += change
    tampered = replace(certificate, potentials=potentials)
    bound = _bound(DIAMOND, potentials.tolist())
    if bound == certificate.cost:  # potentials are not unique
        assert verify(DIAMOND, BEST, tampered) == bound
    else:
        assert bound < certificate.cost
        with pytest.raises(CertificateError, match="proves"):
            verify(DIAMOND, BEST, tampered)


def _bound(network: Network, potentials: list[int]) -> int:
    columns = (network.tails, network.heads, network.capacities, network.costs)
    arcs = zip(*(column.tolist() for column in columns), strict=True)
    slack = sum(cap * min(0, price + potentials[tail] - potentials[head]) for tail, head, cap, price in arcs)
    return int(slack - sum(supply * found for supply, found in zip(network.supplies.tolist(), potentials, strict=True)))


def test_a_certificate_of_another_cost_is_refused() -> None:
    certificate = certify(DIAMOND, BEST)
    with pytest.raises(CertificateError, match="the proof says 4"):
        verify(DIAMOND, BEST, replace(certificate, cost=certificate.cost - 1))


def test_a_certificate_of_another_network_is_refused() -> None:
    certificate = certify(DIAMOND, BEST)
    with pytest.raises(CertificateError, match="another network"):
        verify(DIAMOND, BEST[:-1], certificate)


def test_what_could_overflow_is_refused() -> None:
    with pytest.raises(CertificateError, match="too large"):
        certify(replace(DIAMOND, costs=DIAMOND.costs * 2**60), BEST)


GIB = 2**30


def gpu(name: str, kind: str, memory_gib: int = 16) -> OpenGpu:
    return OpenGpu(node="node-a", uuid=name, offer=Offer(kind, memory_gib * GIB, ("process",)))


def job(name: str, *kinds: str, submitted_ns: int) -> WaitingJob:
    return WaitingJob(key=("default", name), need=Need(GIB, kinds, "process"), submitted_ns=submitted_ns)


PROBLEM = Problem(
    waiting=(job("first", "T4", submitted_ns=1), job("second", "A100", submitted_ns=2), job("third", submitted_ns=3)),
    gpus=(gpu("GPU-1", "T4"), gpu("GPU-2", "A100"), gpu("GPU-3", "V100", 80), gpu("GPU-4", "V100")),
)


def test_a_solver_that_gives_jobs_the_wrong_gpus_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    assert solve(PROBLEM).assignments[2] == (("default", "third"), PROBLEM.gpus[3])
    monkeypatch.setattr(
        flow, "optimize", lambda network: optimize(replace(network, costs=network.costs.max() - network.costs))
    )
    with pytest.raises(CertificateError, match="negative cycle"):
        solve(PROBLEM)


def test_a_solver_that_leaves_somebody_without_a_gpu_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow, "optimize", lambda network: 0 * optimize(network))
    with pytest.raises(CertificateError, match="made or lost"):
        solve(PROBLEM)


# ---------------------------------------------------------------- who gets a GPU

CROWDED = replace(PROBLEM, gpus=PROBLEM.gpus[:2])
"""The third job waits: the first two need these GPUs."""


def chosen(problem: Problem) -> tuple[Classes, Precedence]:
    classes = classify(problem, participants(problem))
    return classes, decide(classes)


def test_that_a_job_waits_is_proved_by_those_ahead_who_fill_all_that_it_could_have() -> None:
    classes, found = chosen(CROWDED)
    check(classes, found)
    assert found.counts.tolist() == [1, 1, 0]
    (closure,) = found.closures
    assert (closure.place, closure.gpu_classes.tolist()) == (2, [0, 1])


def test_that_nobody_waits_needs_no_proof() -> None:
    assert chosen(PROBLEM)[1].closures == ()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"closures": ()}, "not shown why .* waits"),
        ({"counts": integers(1, 0, 1)}, "ahead of one that was left out, and there is room for 2"),
        ({"counts": integers(0, 1, 0)}, "there is room for 2"),
        ({"place": 3}, "not shown why .* waits"),
        ({"place": 1}, "1 jobs are ahead"),
        ({"gpu_classes": integers(0)}, "a GPU that was not looked at"),
        ({"job_classes": integers(0, 1)}, "not shown why .* waits"),
    ],
)
def test_a_choice_or_a_proof_that_was_tampered_with_is_refused(change: dict[str, Any], why: str) -> None:
    classes, found = chosen(CROWDED)
    if "closures" in change or "counts" in change:
        tampered = replace(found, **change)
    else:
        tampered = replace(found, closures=(replace(found.closures[0], **change),))
    with pytest.raises(CertificateError, match=why):
        check(classes, tampered)
