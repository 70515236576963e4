"""The matching: who gets a GPU, then which one, then by whose moves, a few at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from fractions import Fraction

from msgspec.structs import replace

from muxflow_decisions.matching import flow, precedence
from muxflow_decisions.matching.classes import classify
from muxflow_decisions.matching.members import Chain, chains
from muxflow_decisions.matching.model import Need, Offer
from muxflow_decisions.matching.participants import Participants, participants
from muxflow_decisions.matching.problem import Matching, Problem, Summary


def solve(problem: Problem) -> Matching:
    """Match jobs to GPUs, at most one job on each.

    In the order of weight: no job that fits waits for the sake of jobs behind it in the queue, and placed jobs keep a
    GPU; the sum of predicted speeds is the largest there is, moves deducted; small jobs leave big GPUs free, and calm
    GPUs are used first. If that takes more moves than the policy allows, those for the first jobs in the queue are
    made, then those that gain most, and whoever would have to wait for a move that is not made gets a free GPU if one
    fits.

    Raises CertificateError should the solver be wrong, ValueError if two placed jobs share a GPU.
    """
    found = participants(problem)
    classes = classify(problem, found)
    summary = Summary(
        jobs=len(found.waiting) + len(found.placed) + len(found.settled),
        gpus=len(found.gpus) + len(found.settled),
        job_classes=len(classes.jobs),
        gpu_classes=len(classes.gpus),
        throughput_permille=_unchanged_permille(problem, found),
    )
    settled = tuple((job.key, gpu) for job, gpu in found.settled)
    if not classes.jobs:
        return Matching(assignments=settled, summary=summary)
    chosen = precedence.decide(classes)
    plan = flow.plan(classes, chosen.counts, problem.policy)
    possible, placed_permille = chains(classes, plan.counts, problem.policy)
    made, rest = _made(possible, problem, found)
    summary = replace(
        summary,
        throughput_permille=summary.throughput_permille + placed_permille + sum(map(_gained_permille, made)),
        planned_moves=sum(len(chain.moves) for chain in possible),
        cost=plan.certificate.cost,
        bound=plan.certificate.bound,
    )
    return _joined(made, Matching(assignments=settled, summary=summary), rest)


def _made(possible: Sequence[Chain], problem: Problem, found: Participants) -> tuple[list[Chain], Matching]:
    """Choose the chains that are carried out; also match anew those whose chain is not."""
    left = problem.policy.moves_max
    made: list[Chain] = []
    for chain in sorted((each for each in possible if each.entering), key=_place_in_queue):
        if len(chain.moves) > left:
            break
        made.append(chain)
        left -= len(chain.moves)
    rest = Matching()
    if len(made) < sum(chain.entering is not None for chain in possible):
        rest = _without_moves(problem, found, made)
    given = {gpu.place for _, gpu in rest.assignments}
    for chain in sorted((each for each in possible if not each.entering), key=_gain_per_move):
        if len(chain.moves) <= left and given.isdisjoint(chain.gpus):
            made.append(chain)
            left -= len(chain.moves)
    return made, rest


def _without_moves(problem: Problem, found: Participants, made: Iterable[Chain]) -> Matching:
    """Match the waiting jobs that nothing was done for with the GPUs that are free."""
    served = {chain.entering[1].key for chain in made if chain.entering}
    given = {place for chain in made for place in chain.gpus}
    return solve(
        replace(
            problem,
            waiting=tuple(job for job in found.waiting if job.key not in served),
            gpus=tuple(gpu for gpu in found.gpus if gpu.place not in found.placed and gpu.place not in given),
            placed=(),
        )
    )


def _place_in_queue(chain: Chain) -> int:
    return chain.entering[0] if chain.entering else -1


def _gain_per_move(chain: Chain) -> tuple[Fraction, tuple[str, str]]:
    return (-Fraction(chain.gain_permille, len(chain.moves)), chain.moves[0].key)


def _gained_permille(chain: Chain) -> int:
    return chain.permille + sum(move.target_permille - move.source_permille for move in chain.moves)


def _unchanged_permille(problem: Problem, found: Participants) -> int:
    """Sum the normalized throughput of those whose GPU is settled, in thousandths."""
    pairs: Counter[tuple[Need, Offer]] = Counter((job.need, gpu.offer) for job, gpu in found.kept)
    pairs.update((job.need, gpu.offer) for job, gpu in found.settled)
    return sum(count * problem.speeds.permille_of(need, offer) for (need, offer), count in pairs.items())


def _joined(made: Sequence[Chain], settled: Matching, rest: Matching) -> Matching:
    entering = sorted((*chain.entering, not chain.moves) for chain in made if chain.entering)
    return Matching(
        assignments=(
            *settled.assignments,
            *((job.key, gpu) for _, job, gpu, free in entering if free),
            *rest.assignments,
        ),
        moves=tuple(move for chain in made for move in chain.moves),
        promised=tuple((job.key, gpu) for _, job, gpu, free in entering if not free),
        summary=replace(
            settled.summary,
            throughput_permille=settled.summary.throughput_permille + rest.summary.throughput_permille,
        ),
    )
