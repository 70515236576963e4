"""Placed jobs in the matching: who stays, who moves, by how much; against brute force."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from muxflow_decisions.matching import (
    JobKey,
    Matching,
    MatchingPolicy,
    Need,
    Offer,
    OpenGpu,
    PlacedJob,
    Problem,
    Speed,
    Speeds,
    WaitingJob,
    Weights,
    columns,
    fits,
    flow,
    measured_of,
    spot_of,
)
from muxflow_decisions.matching.certificate import Integers, Network
from muxflow_decisions.matching.optimizer import optimize
from muxflow_decisions.matching.solve import Solver, solve

GIB = 2**30
FREELY = MatchingPolicy(moves_max=100)
Place = tuple[str, str]


def offer(kind: str = "T4", memory_gib: int = 16, workload: str | None = None, load: int = 0) -> Offer:
    return Offer(kind, memory_gib * GIB, ("process",), load, workload)


def gpu(name: str, on: Offer, reserved_for: JobKey | None = None) -> OpenGpu:
    return OpenGpu(node="node-a", uuid=name, offer=on, reserved_for=reserved_for)


def need(key: str, memory_gib: int = 8, kinds: tuple[str, ...] = ()) -> Need:
    return Need(memory_gib * GIB, kinds, "process", key)


def waiting(name: str, what: Need, submitted_ns: int = 0) -> WaitingJob:
    return WaitingJob(key=("t", name), need=what, submitted_ns=submitted_ns)


def placed(name: str, what: Need, on: str, *, movable: bool = True, saves: bool = True) -> PlacedJob:
    return PlacedJob(key=("t", name), need=what, gpu=("node-a", on), movable=movable, saves=saves)


def speeds(permille: dict[tuple[str, str], int], needs: Sequence[Need], offers: Sequence[Offer]) -> Speeds:
    """A table from permille by the job's key and the service's name."""
    return Speeds.of(
        {
            (measured_of(what), spot_of(on)): Speed(permille[what.key, str(on.workload)])
            for what in needs
            for on in offers
            if (what.key, str(on.workload)) in permille
        }
    )


def after(problem: Problem, matching: Matching) -> dict[JobKey, Place]:
    """Where everybody is once the matching is carried out. Fails if that cannot be."""
    places = {job.key: job.gpu for job in problem.placed}
    known = {found.place: found for found in problem.gpus}
    for move in matching.moves:
        assert places[move.key] == move.source
        assert known[move.target.place] == move.target
    places.update({move.key: move.target.place for move in matching.moves})
    for key, found in (*matching.assignments, *matching.promised):
        assert key not in places
        assert known[found.place] == found
        places[key] = found.place
    assert len(set(places.values())) == len(places), "a GPU is given to two jobs"
    return places


# ---------------------------------------------------------------- against brute force

OFFERS = [
    offer("T4", 16, "a"),
    offer("T4", 16, "b", load=2),
    offer("A100", 40, "a", load=4),
    offer("A100", 80),
]
NEEDS = [need("x", 1), need("x", 16), need("y", 8), need("y", 40, ("A100",)), need("z", 8, ("T4",))]


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    on = draw(st.lists(st.sampled_from(OFFERS), min_size=1, max_size=5))
    gpus = [gpu(f"GPU-{number}", found) for number, found in enumerate(on)]
    occupied = draw(st.lists(st.sampled_from(gpus), max_size=3, unique_by=lambda found: found.uuid))
    there = [
        placed(
            f"placed-{number}",
            draw(st.sampled_from([what for what in NEEDS if fits(what, found.offer)])),
            found.uuid,
            movable=draw(st.booleans()) or draw(st.booleans()),
            saves=draw(st.booleans()),
        )
        for number, found in enumerate(occupied)
    ]
    queue = [
        waiting(f"waiting-{number}", draw(st.sampled_from(NEEDS)), draw(st.integers(0, 2)))
        for number in range(draw(st.integers(0, 5 - len(there))))
    ]
    known = {
        (measured_of(what), spot_of(found)): Speed(draw(st.integers(0, 20)) * 60, draw(st.sampled_from([799, 800])))
        for what in NEEDS
        for found in OFFERS
        if draw(st.integers(0, 4))
    }
    policy = MatchingPolicy(
        weights=draw(st.sampled_from([Weights.PREDICTED, Weights.PREDICTED, Weights.MEMORY])),
        migration_cost_permille=draw(st.sampled_from([0, 5, 70])),
        migration_cost_unsaved_permille=draw(st.sampled_from([0, 200])),
        moves_max=100,
    )
    return Problem(waiting=tuple(queue), gpus=tuple(gpus), placed=tuple(there), speeds=Speeds.of(known), policy=policy)


def may(problem: Problem, what: Need, on: Offer) -> bool:
    speed = problem.speeds.find(what, on)
    safe = speed is None or speed.fits_permille >= problem.policy.fits_threshold_permille
    return fits(what, on) and (safe or problem.policy.weights is Weights.MEMORY)


Score = tuple[list[bool], int, int]


def every_outcome(
    problem: Problem, queue: Sequence[WaitingJob | PlacedJob], gpus: Sequence[OpenGpu]
) -> Iterator[dict[JobKey, Place]]:
    if not queue:
        yield {}
        return
    job, *others = queue
    if isinstance(job, WaitingJob):
        yield from every_outcome(problem, others, gpus)
    for found in gpus:
        here = isinstance(job, PlacedJob) and job.gpu == found.place
        movable = not isinstance(job, PlacedJob) or job.movable
        if here or (movable and may(problem, job.need, found.offer)):
            for rest in every_outcome(problem, others, [other for other in gpus if other is not found]):
                yield {job.key: found.place, **rest}


def score(problem: Problem, places: dict[JobKey, Place]) -> Score:
    """The objective, least is best: who waits, in queue order; speed that is lacking, moves included; ties."""
    offers = {found.place: found.offer for found in problem.gpus}
    policy = problem.policy
    largest = max((on.memory_bytes for on in offers.values()), default=0)
    lacking = ties = 0
    everybody: list[WaitingJob | PlacedJob] = [*problem.waiting, *problem.placed]
    for job in everybody:
        if job.key not in places or (isinstance(job, PlacedJob) and not job.movable):
            continue
        on = offers[places[job.key]]
        if policy.weights is Weights.PREDICTED:
            lacking -= problem.speeds.permille_of(job.need, on)
        size = min(other.memory_bytes for other in offers.values() if other.memory_bytes >= job.need.memory_bytes)
        ties += 900 * (on.memory_bytes - size) // largest + 25 * on.load
        if isinstance(job, PlacedJob) and job.gpu != places[job.key]:
            lacking += policy.migration_cost_permille if job.saves else policy.migration_cost_unsaved_permille
            ties += 1000
    queue = sorted(problem.waiting, key=lambda job: job.order)
    return [job.key not in places for job in queue], lacking, ties


@settings(max_examples=200, deadline=None)
@given(problems())
def test_the_outcome_is_as_good_as_the_best_of_all(problem: Problem) -> None:
    pinned = {job.gpu for job in problem.placed if not job.movable}
    on_offer = replace(problem, gpus=tuple(found for found in problem.gpus if found.place not in pinned))
    movable = [job for job in problem.placed if job.movable]
    best = min(
        score(on_offer, places) for places in every_outcome(on_offer, [*movable, *problem.waiting], list(on_offer.gpus))
    )
    places = after(problem, solve(problem))
    assert {job.key: places[job.key] for job in problem.placed if not job.movable} == {
        job.key: job.gpu for job in problem.placed if not job.movable
    }
    assert score(on_offer, {key: place for key, place in places.items() if place not in pinned}) == best


@settings(max_examples=100, deadline=None)
@given(problems(), st.randoms(use_true_random=False))
def test_the_order_of_everything_in_a_problem_does_not_matter(problem: Problem, rng: random.Random) -> None:
    def shuffled(items: Sequence[object]) -> tuple[object, ...]:
        return tuple(rng.sample(items, len(items)))

    other = msgspec.structs.replace(
        problem, waiting=shuffled(problem.waiting), gpus=shuffled(problem.gpus), placed=shuffled(problem.placed)
    )
    assert solve(other) == solve(problem)


@settings(max_examples=150, deadline=None)
@given(problems(), st.integers(0, 2))
def test_moves_are_bounded_and_nobody_waits_for_one_that_is_not_made(problem: Problem, moves_max: int) -> None:
    problem = replace(problem, policy=replace(problem.policy, moves_max=moves_max))
    matching = solve(problem)
    places = after(problem, matching)
    assert len(matching.moves) <= moves_max <= matching.summary.planned_moves or (
        len(matching.moves) == matching.summary.planned_moves
    )
    assert {job.key for job in problem.placed} <= places.keys()
    untouched = {found.place for found in problem.gpus} - set(places.values()) - {job.gpu for job in problem.placed}
    for job in problem.waiting:
        if job.key not in places:
            assert not any(may(problem, job.need, found.offer) for found in problem.gpus if found.place in untouched)


@settings(max_examples=100, deadline=None)
@given(problems())
def test_moves_can_be_made_in_their_order(problem: Problem) -> None:
    matching = solve(problem)
    occupant = {job.gpu: job.key for job in problem.placed}
    made: list[JobKey] = []
    for move in matching.moves:
        assert move.after == occupant.get(move.target.place)
        assert move.after is None or move.after in {other.key for other in matching.moves}
        made.append(move.key)
    for key, found in matching.promised:
        assert occupant[found.place] in made, key
    assert all(found.place not in occupant for _, found in matching.assignments)


@settings(max_examples=50, deadline=None)
@given(problems())
def test_a_problem_and_its_solution_cross_the_border_of_a_process(problem: Problem) -> None:
    there = msgspec.msgpack.decode(msgspec.msgpack.encode(problem), type=Problem)
    assert there == problem
    matching = solve(there)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(matching), type=Matching) == matching


# ---------------------------------------------------------------- one rule after the other

CALM, BUSY = offer(workload="calm"), offer(workload="busy", load=3)
X, Y = need("x"), need("y")


def test_the_sum_of_speeds_counts_and_not_each_jobs_own_wish() -> None:
    table = speeds(
        {("x", "calm"): 900, ("x", "busy"): 800, ("y", "calm"): 850, ("y", "busy"): 100}, (X, Y), (CALM, BUSY)
    )
    problem = Problem(waiting=(waiting("1", X), waiting("2", Y)), gpus=(gpu("c", CALM), gpu("b", BUSY)), speeds=table)
    matching = solve(problem)
    assert after(problem, matching) == {("t", "1"): ("node-a", "b"), ("t", "2"): ("node-a", "c")}
    assert matching.summary.throughput_permille == 1650


def test_a_job_without_a_prediction_counts_as_the_offer_assumes() -> None:
    slow, fast = replace(CALM, assumed_permille=200), replace(BUSY, assumed_permille=700)
    problem = Problem(waiting=(waiting("1", X),), gpus=(gpu("s", slow), gpu("f", fast)))
    matching = solve(problem)
    assert after(problem, matching) == {("t", "1"): ("node-a", "f")}
    assert matching.summary.throughput_permille == 700


def test_a_job_that_probably_does_not_fit_waits_unless_predictions_are_off() -> None:
    table = Speeds.of({(measured_of(X), spot_of(CALM)): Speed(900, fits_permille=310)})
    problem = Problem(waiting=(waiting("1", X),), gpus=(gpu("c", CALM),), speeds=table)
    assert solve(problem).assignments == ()
    lenient = replace(problem, policy=MatchingPolicy(fits_threshold_permille=310))
    assert len(solve(lenient).assignments) == 1
    assert len(solve(replace(problem, policy=MatchingPolicy(weights=Weights.MEMORY))).assignments) == 1


@pytest.mark.parametrize(("gain", "moves"), [(20, 0), (21, 1)])
def test_a_job_moves_only_for_more_than_a_move_costs(gain: int, moves: int) -> None:
    table = speeds({("x", "calm"): 500 + gain, ("x", "busy"): 500}, (X,), (CALM, BUSY))
    problem = Problem(gpus=(gpu("c", CALM), gpu("b", BUSY)), placed=(placed("1", X, "b"),), speeds=table)
    matching = solve(problem)
    assert [(move.key, move.source_permille, move.target_permille) for move in matching.moves] == [
        (("t", "1"), 500, 500 + gain)
    ] * moves


def test_of_two_jobs_alike_the_one_that_saves_its_state_moves() -> None:
    table = speeds({("x", "calm"): 900, ("x", "busy"): 500}, (X,), (CALM, BUSY))
    there = (placed("1", X, "b1", saves=False), placed("2", X, "b2"))
    problem = Problem(gpus=(gpu("c", CALM), gpu("b1", BUSY), gpu("b2", BUSY)), placed=there, speeds=table)
    assert [move.key for move in solve(problem).moves] == [("t", "2")]


def test_jobs_of_one_class_do_not_change_places() -> None:
    rng = random.Random(3)
    gpus = [gpu(f"{number:02}", CALM if number % 2 else BUSY) for number in range(40)]
    there = [placed(f"{number:02}", X, f"{number:02}") for number in range(30)]
    problem = Problem(gpus=tuple(gpus), placed=tuple(rng.sample(there, 30)), policy=FREELY)
    assert solve(problem).moves == ()


def test_two_jobs_that_gain_by_it_change_places() -> None:
    table = speeds(
        {("x", "calm"): 900, ("x", "busy"): 800, ("y", "calm"): 850, ("y", "busy"): 100}, (X, Y), (CALM, BUSY)
    )
    problem = Problem(
        gpus=(gpu("c", CALM), gpu("b", BUSY)), placed=(placed("1", X, "c"), placed("2", Y, "b")), speeds=table
    )
    matching = solve(problem)
    assert {(move.key, move.after) for move in matching.moves} == {
        (("t", "1"), ("t", "2")),
        (("t", "2"), ("t", "1")),
    }
    assert solve(replace(problem, policy=MatchingPolicy(moves_max=1))).moves == ()


def test_a_small_job_makes_way_for_a_big_one_that_fits_nowhere_else() -> None:
    big, small = offer("A100", 80), offer("T4", 16)
    problem = Problem(
        waiting=(waiting("big", need("big", 40)),),
        gpus=(gpu("a", big), gpu("t", small)),
        placed=(placed("small", need("small", 4), "a", saves=False),),
    )
    matching = solve(problem)
    assert [(move.key, move.target.uuid) for move in matching.moves] == [(("t", "small"), "t")]
    assert [(key, found.uuid) for key, found in matching.promised] == [(("t", "big"), "a")]
    assert matching.assignments == ()


def test_a_placed_job_never_loses_its_gpu_to_one_that_waits_however_first_that_is() -> None:
    urgent = WaitingJob(key=("t", "urgent"), need=X, priority=100)
    problem = Problem(waiting=(urgent,), gpus=(gpu("c", CALM),), placed=(placed("1", X, "c"),))
    assert solve(problem).assignments == ()


def test_a_job_may_stay_where_it_would_not_be_placed_any_more() -> None:
    table = Speeds.of(
        {(measured_of(X), spot_of(CALM)): Speed(900, 100), (measured_of(X), spot_of(BUSY)): Speed(100, 1000)}
    )
    problem = Problem(gpus=(gpu("c", CALM), gpu("b", BUSY)), placed=(placed("1", X, "c"),), speeds=table)
    assert solve(problem).moves == ()


def test_a_placed_job_whose_gpu_is_not_on_offer_takes_no_part() -> None:
    problem = Problem(waiting=(waiting("2", X),), gpus=(gpu("c", CALM),), placed=(placed("1", X, "elsewhere"),))
    assert [key for key, _ in solve(problem).assignments] == [("t", "2")]


def test_a_reserved_gpu_is_for_one_job_alone_even_if_others_are_ahead() -> None:
    late = waiting("late", X, 9)
    problem = Problem(
        waiting=(waiting("early", X, 1), late), gpus=(gpu("c", CALM, reserved_for=late.key), gpu("b", BUSY))
    )
    assert after(problem, solve(problem)) == {("t", "late"): ("node-a", "c"), ("t", "early"): ("node-a", "b")}
    absent = replace(problem, waiting=(waiting("early", X, 1), waiting("other", X, 2)))
    assert after(absent, solve(absent)) == {("t", "early"): ("node-a", "b")}


def test_of_many_moves_those_that_gain_most_are_made_first() -> None:
    keys = [f"k{number}" for number in range(8)]
    needs = [need(key) for key in keys]
    table = speeds(
        {
            (key, on): (500 + 50 * number if on == "calm" else 500)
            for number, key in enumerate(keys)
            for on in ("calm", "busy")
        },
        needs,
        (CALM, BUSY),
    )
    problem = Problem(
        gpus=tuple([gpu(f"c{number}", CALM) for number in range(8)] + [gpu(f"b{number}", BUSY) for number in range(8)]),
        placed=tuple(placed(what.key, what, f"b{number}") for number, what in enumerate(needs)),
        speeds=table,
        policy=MatchingPolicy(moves_max=3),
    )
    matching = solve(problem)
    assert {move.key[1] for move in matching.moves} == {"k5", "k6", "k7"}
    assert matching.summary.planned_moves == 7
    assert matching.summary.throughput_permille == 8 * 500 + 250 + 300 + 350


def test_random_pairs_are_feasible_the_same_for_a_seed_and_others_for_another() -> None:
    gpus = tuple(gpu(f"g{number}", offer("T4" if number % 2 else "A100", 40, f"w{number}")) for number in range(10))
    queue = tuple(waiting(f"j{number}", need(f"k{number}", 8, ("T4",) if number < 3 else ())) for number in range(10))
    table = Speeds.of({(measured_of(job.need), spot_of(found.offer)): Speed(700) for job in queue for found in gpus})

    def drawn(seed: int, now_ns: int = 0) -> dict[JobKey, Place]:
        policy = MatchingPolicy(weights=Weights.RANDOM, seed=seed)
        problem = Problem(waiting=queue, gpus=gpus, speeds=table, policy=policy, now_ns=now_ns)
        places = after(problem, solve(problem))
        assert all(int(places["t", f"j{number}"][1][1:]) % 2 for number in range(3))
        return places

    assert drawn(1) == drawn(1)
    assert len({str(drawn(seed)) for seed in range(5)}) == 5
    assert drawn(1, 0) != drawn(1, 1)


def test_a_job_or_a_gpu_that_is_placed_twice_is_refused() -> None:
    for there in ((placed("1", X, "c"), placed("2", X, "c")), (placed("1", X, "c"), placed("1", X, "b"))):
        with pytest.raises(ValueError, match="placed"):
            solve(Problem(gpus=(gpu("c", CALM), gpu("b", BUSY)), placed=there))


# ---------------------------------------------------------------- prices of the last solve


@settings(max_examples=60, deadline=None)
@given(st.lists(problems(), min_size=2, max_size=5), st.integers(0, 3))
def test_a_solver_that_remembers_prices_finds_what_is_as_good(sequence: list[Problem], arcs_per_node: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flow, "_LARGE", 0)
        patch.setattr(columns, "_ARCS_PER_NODE", arcs_per_node)
        solver = Solver()
        for problem in sequence:
            found, anew = solver.solve(problem), solve(problem)
            assert found.summary.cost == found.summary.bound == anew.summary.cost
            assert score(problem, after(problem, found)) == score(problem, after(problem, anew))


def test_prices_of_a_similar_problem_leave_most_arcs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    arcs: list[int] = []

    def counted(network: Network) -> Integers:
        arcs.append(len(network.tails))
        return optimize(network)

    monkeypatch.setattr(flow, "_LARGE", 0)
    monkeypatch.setattr(columns, "_ARCS_PER_NODE", 5)
    monkeypatch.setattr(flow, "optimize", counted)
    monkeypatch.setattr(columns, "optimize", counted)
    rng = random.Random(1)
    on = [offer(workload=f"w{number}", load=number % 5) for number in range(60)]
    needs = [need(f"k{number}") for number in range(60)]
    table = Speeds.of(
        {
            (measured_of(what), spot_of(found)): Speed(900 - 2 * number * found.load + rng.randint(0, 30))
            for number, what in enumerate(needs)
            for found in on
        }
    )
    problem = Problem(
        waiting=tuple(waiting(f"j{number}", rng.choice(needs), number) for number in range(200)),
        gpus=tuple(gpu(f"g{number}", rng.choice(on)) for number in range(220)),
        speeds=table,
    )
    solver = Solver()
    solver.solve(problem)
    all_of_them = arcs[0]
    del arcs[:]
    later = replace(problem, waiting=problem.waiting[3:])
    found = solver.solve(later)
    assert max(arcs) < all_of_them / 2
    assert found.summary.cost == solve(later).summary.cost
