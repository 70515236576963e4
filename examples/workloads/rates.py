"""Makes request rates as an online service sees them: days and nights, noise, and bursts.

The rate of second t is the product of

- the day: 1 - depth * cos(2 * pi * t / day_s), which begins at night, with the fewest requests;
- noise: exp(noise * z), where z is normal and remembers itself for noise_s seconds;
- bursts: burst_factor while there is one, else 1. While there is none, one begins with probability bursts_per_day/day_s
  each second; it lasts burst_s on average;

times what makes the mean of all of it mean_per_s. One rate per line, in requests per second, one line per second of
load. A day is 24 minutes long unless told otherwise. The same seed gives the same rates.

    python3 examples/workloads/rates.py --mean-per-s 50 --bursts-per-day 30 --seed 7 > rates.txt
    python3 examples/workloads/online_service.py --rates rates.txt --seconds 1440
"""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from itertools import islice


@dataclass(frozen=True, kw_only=True)
class Model:
    """What the rates are like."""

    mean_per_s: float = 20.0
    """Requests per second, on average over what is made."""
    depth: float = 0.6
    """How much the day differs from its mean: 0 not at all, 0.9 down to a tenth and up to almost twice as much."""
    day_s: float = 1440.0
    noise: float = 0.2
    """Standard deviation of the logarithm."""
    noise_s: float = 20.0
    """After so many seconds the noise has forgotten 63% of what it was; 0: it remembers nothing."""
    bursts_per_day: float = 12.0
    """If one began at any time; none begins while there is one."""
    burst_factor: float = 3.0
    burst_s: float = 15.0
    """Mean length."""


def rates(model: Model, *, seconds: int, seed: int) -> list[float]:
    """Make one rate for each second, in requests per second."""
    chance = random.Random(seed)
    parts = zip(_days(model), _noise(model, chance), _bursts(model, chance), strict=False)
    shape = [math.prod(factors) for factors in islice(parts, seconds)]
    mean = math.fsum(shape) / seconds
    return [round(model.mean_per_s * each / mean, 3) for each in shape]


def _days(model: Model) -> Iterator[float]:
    second = 0
    while True:
        yield 1 - model.depth * math.cos(2 * math.pi * second / model.day_s)
        second += 1


def _noise(model: Model, chance: random.Random) -> Iterator[float]:
    kept = math.exp(-1 / model.noise_s) if model.noise_s else 0.0
    z = chance.gauss(0, 1)
    while True:
        yield math.exp(model.noise * z)
        z = kept * z + math.sqrt(1 - kept**2) * chance.gauss(0, 1)


def _bursts(model: Model, chance: random.Random) -> Iterator[float]:
    burst = False
    while True:
        burst = chance.random() < (1 - 1 / model.burst_s if burst else model.bursts_per_day / model.day_s)
        yield model.burst_factor if burst else 1.0


def within(low: float, high: float) -> Callable[[str], float]:
    """Make what reads a number of this range."""

    def number(text: str) -> float:
        value = float(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text}: not within {low:g} to {high:g}")
        return value

    return number


def main() -> None:
    """Read the command line, and print the rates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Model()
    for name, low, high, what in (
        ("mean_per_s", 0.001, 1e6, "requests per second, on average"),
        ("depth", 0, 0.99, "how much the day differs from its mean"),
        ("day_s", 2, 1e6, "how long a day is, in seconds"),
        ("noise", 0, 3, "standard deviation of the logarithm of the noise"),
        ("noise_s", 0, 1e6, "how long the noise remembers itself, in seconds"),
        ("bursts_per_day", 0, 1e6, "how many begin in a day"),
        ("burst_factor", 1, 1000, "times as many requests in a burst"),
        ("burst_s", 1, 1e6, "how long a burst is on average, in seconds"),
    ):
        value = getattr(default, name)
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=within(low, high), default=value, help=f"{what} (default: {value:g})"
        )
    parser.add_argument("--seconds", type=within(1, 1e7), help="how much to make (default: one day)")
    parser.add_argument("--seed", type=int, default=1, help="of everything random (default: 1)")
    options = parser.parse_args()
    model = Model(**{field.name: getattr(options, field.name) for field in fields(Model)})
    seconds = int(options.seconds or model.day_s)
    told = " ".join(f"{name}={value:g}" for name, value in asdict(model).items())
    print(f"# Requests per second, a line each second; made by rates.py: seed={options.seed} {told}")
    for rate in rates(model, seconds=seconds, seed=options.seed):
        print(rate)


if __name__ == "__main__":
    main()
