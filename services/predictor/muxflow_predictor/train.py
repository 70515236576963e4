"""``python -m muxflow_predictor.train``: one training, as a process of its own.

Reads a `TrainingOrder` as JSON from standard input, writes a `TrainingResult` to standard output. It may be killed at
any time: then there is no new model, and nothing else is lost.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import sys
from collections.abc import Sequence
from typing import Final

import msgspec

from muxflow_decisions.speed import PAIRS, Evaluation, MeasuredPair, ModelPolicy, assumed, fits_by_memory
from muxflow_predictor import shipped
from muxflow_predictor.model import Predictor, SpeedTrees
from muxflow_predictor.orders import TrainingOrder, TrainingResult
from muxflow_predictor.training import asked, evaluate, split, train

_NICE: Final = 15
_PR_SET_PDEATHSIG: Final = 1


def fulfil(order: TrainingOrder) -> TrainingResult:
    """Train and judge. ValueError when there is nothing to train from."""
    rows = [*order.rows]
    if len(order.rows) < order.policy.shipped_until_rows:
        rows += shipped.rows()
    sides = split(rows, newest=order.policy.held_out_rows_max)
    judges = _judges(sides.held_out, order.policy)
    trees = train(sides.training, PAIRS, seed=order.seed, threads=order.threads)
    comparable = order.present is not None and order.present.names == PAIRS.names
    return TrainingResult(
        trees=trees,
        candidate=_judged(trees, judges, sides.training),
        present=_judged(order.present, judges, sides.training) if comparable and order.present else None,
        assumed=_judged_assuming(judges),
        trained_rows=len(sides.training),
        held_out_rows=len(judges),
        measured_on=_measured_on(sides.training),
    )


def _judges(held_out: Sequence[MeasuredPair], policy: ModelPolicy) -> list[MeasuredPair]:
    """The cluster's own measurements judge, once there are enough of them."""
    own = [row for row in held_out if not row.simulated]
    return own if len(own) >= policy.held_out_rows_min else [*held_out]


def _judged(trees: SpeedTrees, judges: Sequence[MeasuredPair], known: Sequence[MeasuredPair]) -> Evaluation:
    answers = Predictor(trees).predict(asked(judges, known, PAIRS))
    rules = [fits_by_memory(row.facts) for row in judges]
    return evaluate(
        [answer.speed for answer in answers],
        [rule if answer.fits is None else min(answer.fits, rule) for answer, rule in zip(answers, rules, strict=True)],
        judges,
    )


def _judged_assuming(judges: Sequence[MeasuredPair]) -> Evaluation:
    guesses = [assumed(row.facts, fits_probability=fits_by_memory(row.facts)) for row in judges]
    return evaluate(
        [guess.normalized_throughput for guess in guesses], [guess.fits_probability for guess in guesses], judges
    )


def _measured_on(rows: Sequence[MeasuredPair]) -> str:
    places = {"simulated GPUs" if row.simulated else "this cluster" for row in rows}
    return " and ".join(sorted(places))


def main() -> None:
    """Train once."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # nobody is left to take the model
    os.nice(_NICE)
    order = msgspec.json.decode(sys.stdin.buffer.read(), type=TrainingOrder)
    try:
        result = fulfil(order)
    except (ValueError, OSError) as error:
        sys.exit(str(error))
    sys.stdout.buffer.write(msgspec.json.encode(result))


if __name__ == "__main__":
    main()
