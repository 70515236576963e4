"""The matching: who gets a GPU, then which one, then by whose moves, a few at a time."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

from msgspec.structs import replace

from muxflow_decisions.matching import flow, precedence
from muxflow_decisions.matching.classes import classify
from muxflow_decisions.matching.flow import Prices
from muxflow_decisions.matching.members import Chain, Steps, steps
from muxflow_decisions.matching.model import Need, Offer
from muxflow_decisions.matching.participants import Participants, participants
from muxflow_decisions.matching.problem import Matching, Problem, Summary


class Solver:
    """Solves problems one after the other, the later ones faster: most of a fleet is as it was a minute ago."""

    def __init__(self) -> None:
        self._prices: Prices = {}

    def solve(self, problem: Problem) -> Matching:
        """Do as `solve` does. Where several matchings are the best, it may be another one."""
        matching, prices = _solve(problem, self._prices)
        self._prices = prices or self._prices
        return matching


def solve(problem: Problem) -> Matching:
    """Match jobs to GPUs, at most one job on each.

    In the order of weight: no job that fits waits for the sake of jobs behind it in the queue, and placed jobs keep a
    GPU; the sum of predicted speeds is the largest there is, moves deducted; small jobs leave big GPUs free, and calm
    GPUs are used first. If that takes more moves than the policy allows, those for the first jobs in the queue are
    made, then those that gain most, and whoever would have to wait for a move that is not made gets a free GPU if one
    fits.

    Raises CertificateError should the solver be wrong, ValueError if two placed jobs share a GPU.
    """
    return _solve(problem, {})[0]


def _solve(problem: Problem, prices: Prices) -> tuple[Matching, Prices]:
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
        return Matching(assignments=settled, summary=summary), {}
    chosen = precedence.decide(classes)
    plan = flow.plan(classes, chosen.counts, problem.policy, prices)
    possible = steps(classes, plan.counts, problem.policy)
    made, rest = _made(possible, problem, found)
    entries = [*made.entries, *(chain.entry for chain in made.chains if chain.entry)]
    moves = tuple(move for chain in made.chains for move in chain.moves)
    summary = replace(
        summary,
        throughput_permille=summary.throughput_permille
        + possible.placed_permille
        + sum(move.target_permille - move.source_permille for move in moves)
        + sum(entry.permille for entry in entries)
        + rest.summary.throughput_permille,
        planned_moves=sum(len(chain.moves) for chain in possible.chains),
        cost=plan.certificate.cost,
        bound=plan.certificate.bound,
    )
    matching = Matching(
        assignments=(*settled, *((entry.job.key, entry.gpu) for entry in made.entries), *rest.assignments),
        moves=moves,
        promised=tuple((chain.entry.job.key, chain.entry.gpu) for chain in made.chains if chain.entry),
        summary=summary,
    )
    return matching, plan.prices


def _made(possible: Steps, problem: Problem, found: Participants) -> tuple[Steps, Matching]:
    """Choose the steps that are made; also match anew the waiting jobs that would need others.

    What the queue needs comes first, in its order, then what gains most for each move.
    """
    left = problem.policy.moves_max
    chains: list[Chain] = []
    for chain in sorted((each for each in possible.chains if each.entry), key=_place_in_queue):
        if len(chain.moves) > left:
            made = Steps(
                entries=[entry for entry in possible.entries if entry.place < _place_in_queue(chain)],
                chains=chains,
                placed_permille=possible.placed_permille,
            )
            rest = _without_moves(problem, found, made)
            break
        chains.append(chain)
        left -= len(chain.moves)
    else:
        made, rest = replace(possible, chains=chains), Matching()
    given = {gpu.place for _, gpu in rest.assignments}
    for chain in sorted((each for each in possible.chains if not each.entry), key=_gain_per_move):
        if len(chain.moves) <= left and given.isdisjoint(move.target.place for move in chain.moves):
            chains.append(chain)
            left -= len(chain.moves)
    return made, rest


def _without_moves(problem: Problem, found: Participants, made: Steps) -> Matching:
    """Match the waiting jobs for which nothing was done with the GPUs that are free."""
    entries = [*made.entries, *(chain.entry for chain in made.chains if chain.entry)]
    served = {entry.job.key for entry in entries}
    given = {entry.gpu.place for entry in entries}
    given |= {move.target.place for chain in made.chains for move in chain.moves}
    return solve(
        replace(
            problem,
            waiting=tuple(job for job in found.waiting if job.key not in served),
            gpus=tuple(gpu for gpu in found.gpus if gpu.place not in found.placed and gpu.place not in given),
            placed=(),
        )
    )


def _place_in_queue(chain: Chain) -> int:
    return chain.entry.place if chain.entry else -1


def _gain_per_move(chain: Chain) -> tuple[Fraction, tuple[str, str]]:
    return (-Fraction(chain.gain_permille, len(chain.moves)), chain.moves[0].key)


def _unchanged_permille(problem: Problem, found: Participants) -> int:
    """Sum the normalized throughput of those whose GPU is settled, in thousandths."""
    pairs: Counter[tuple[Need, Offer]] = Counter((job.need, gpu.offer) for job, gpu in found.kept)
    pairs.update((job.need, gpu.offer) for job, gpu in found.settled)
    return sum(count * problem.speeds.permille_of(need, offer) for (need, offer), count in pairs.items())
