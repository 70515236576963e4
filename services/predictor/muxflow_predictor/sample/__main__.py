"""Measure pairs of programs on simulated GPUs, beside each other under MPS, xCUDA and the budget law.

Each kind is one simulated GPU of a `muxflow up` of its own, all at the same time: every offline program and every
service alone at first, then the pairs. A pair takes 6 s; the plan that is shipped (3 kinds, 14 programs, 10 services,
120 pairs a kind) takes 16 minutes on two quiet cores. Rows are appended to the output as they come, and a run that was
cut off goes on where it was. Measurements for which this machine had too little CPU are made again, and left out if
that does not help: they say nothing about a GPU.

    python -m muxflow_predictor.sample --output pairs.jsonl
    python -m muxflow_predictor.sample --output small.jsonl --kinds T4 --programs 4 --services 3 --pairs 8
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from muxflow_decisions.speed import MeasuredPair
from muxflow_predictor import shipped
from muxflow_predictor.sample import measure, node
from muxflow_predictor.sample.plan import BLOCKS, Plan, PlannedPair, plan

_TRIES: Final = 3
_QUIET_S: Final = 5.0

T = TypeVar("T", bound=measure.OfflineFigures | measure.OnlineFigures | measure.Beside)


class Alone(msgspec.Struct, kw_only=True):
    """What was measured of programs alone, kept beside the output so that a run can go on. By kind and name."""

    offline: dict[str, measure.OfflineFigures] = {}
    online: dict[str, measure.OnlineFigures] = {}


class Run:
    """One run: what is to be measured, and what is there."""

    def __init__(self, options: argparse.Namespace, wanted: Plan) -> None:
        self._options = options
        self._offline = {program.name: program for program in wanted.offline}
        self._online = {program.name: program for program in wanted.online}
        self._pairs = wanted.pairs
        self._pace = measure.Pace(settle_s=options.settle_s, measure_s=options.measure_s)
        self._output: Path = options.output
        self._beside_it = options.output.with_suffix(".alone.json")
        there = shipped.load(self._output) if self._output.exists() else []
        self._done = {_name(row) for row in there}
        self._alone = Alone()
        if self._beside_it.exists():
            self._alone = msgspec.json.decode(self._beside_it.read_bytes(), type=Alone)
        self.left_out = 0

    @property
    def over(self) -> bool:
        """Whether everything has been measured."""
        return not any(self._left(pair) for pair in self._pairs)

    def _left(self, pair: PlannedPair) -> bool:
        return (pair.kind, pair.offline, pair.online, pair.sm_share_pct) not in self._done

    async def on(self, device: node.Device) -> None:
        """Measure everything of one kind."""
        await self._measure_alone(device)
        pairs = [pair for pair in self._pairs if pair.kind == device.kind and self._left(pair)]
        for number, pair in enumerate(pairs, 1):
            offline, online = self._offline[pair.offline], self._online[pair.online]
            alone = self._alone.offline.get(f"{device.kind}/{pair.offline}")
            service = self._alone.online.get(f"{device.kind}/{pair.online}")
            if alone is None or service is None:
                self.left_out += 1
                continue
            found = await self._quietly(
                lambda offline=offline, online=online, share=pair.sm_share_pct: measure.beside(  # type: ignore[misc]
                    device, self._options.workloads, offline, online, sm_share_pct=share, pace=self._pace
                )
            )
            if found is None:
                continue
            made = measure.row(pair, alone, service, found, gpu_memory_bytes=device.memory_bytes)
            with self._output.open("ab") as file:
                file.write(msgspec.json.encode(made) + b"\n")
            _say(f"{device.kind} {number}/{len(pairs)}: {pair.offline} beside {pair.online} at {pair.sm_share_pct}%: ")
            _say(f"    {made.normalized_throughput:.3f}, waited {found.waited:.3f}")

    async def _measure_alone(self, device: node.Device) -> None:
        workloads = self._options.workloads
        for program in self._offline.values():
            name = f"{device.kind}/{program.name}"
            if name not in self._alone.offline:
                found = await self._quietly(
                    lambda program=program: measure.offline_alone(device, workloads, program, self._pace)  # type: ignore[misc]
                )
                if found is not None:
                    self._alone.offline[name] = found
                    self._keep(name, found)
        for service in self._online.values():
            name = f"{device.kind}/{service.name}"
            if name not in self._alone.online:
                seen = await self._quietly(
                    lambda service=service: measure.online_alone(device, workloads, service, self._pace)  # type: ignore[misc]
                )
                if seen is not None:
                    self._alone.online[name] = seen
                    self._keep(name, seen)

    def _keep(self, name: str, figures: Any) -> None:
        self._beside_it.write_bytes(msgspec.json.encode(self._alone))
        _say(f"{name} alone: {msgspec.json.encode(figures).decode()}")

    async def _quietly(self, work: Callable[[], Awaitable[T]]) -> T | None:
        """Measure, again if the machine was too busy; None if it stays so, or nothing can be measured."""
        for _ in range(_TRIES):
            try:
                found = await work()
            except node.SampleError as error:
                _say(str(error))
                continue
            if found.waited <= self._options.waited_max:
                return found
            _say(f"waited {found.waited:.3f} of the time for a CPU; again")
            await asyncio.sleep(_QUIET_S)
        self.left_out += 1
        return None


def _name(row: MeasuredPair) -> tuple[str, str, str, int]:
    offline, online = row.offline_key.removeprefix("simulated/"), row.workload.removeprefix("simulated-")
    return row.gpu_kind, offline, online, row.facts.sm_share_pct or 100


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201 - progress, of a command


async def _sample(options: argparse.Namespace) -> int:
    wanted = plan(
        kinds=tuple(options.kinds),
        programs=options.programs,
        services=options.services,
        pairs=options.pairs,
        seed=options.seed,
    )
    run = Run(options, wanted)
    if run.over:
        return 0
    me = asyncio.current_task()
    if me is not None:  # what was started is to end with it, whoever ends it
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, me.cancel)
    async with node.machine(tuple(options.kinds)) as devices:
        await asyncio.gather(*(run.on(device) for device in devices))
    return run.left_out


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(
        prog="python -m muxflow_predictor.sample",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", type=Path, required=True, help="file of rows, one JSON object per line")
    parser.add_argument("--kinds", nargs="+", choices=sorted(BLOCKS), default=["T4", "A100", "H200"], help="GPU kinds")
    parser.add_argument("--programs", type=int, default=14, help="offline programs (default: 14)")
    parser.add_argument("--services", type=int, default=10, help="online services (default: 10)")
    parser.add_argument("--pairs", type=int, default=120, help="pairs for each kind (default: 120)")
    parser.add_argument("--seed", type=int, default=1, help="another one is another plan")
    parser.add_argument("--settle-s", type=float, default=2.0, help="wait before measuring (default: 2)")
    parser.add_argument("--measure-s", type=float, default=3.0, help="length of a measurement (default: 3)")
    parser.add_argument(
        "--waited-max", type=float, default=0.25, help="most time that a program may wait for CPUs (default: 0.25)"
    )
    parser.add_argument(
        "--workloads", type=Path, default=Path("examples/workloads"), help="folder of online_service.py, offline_job.py"
    )
    options = parser.parse_args()
    try:
        left_out = asyncio.run(_sample(options))
    except asyncio.CancelledError:
        sys.exit("ended by a signal; run it again to go on")
    if left_out:
        sys.exit(f"{left_out} measurements are left out; run it again on a quieter machine")


if __name__ == "__main__":
    main()
