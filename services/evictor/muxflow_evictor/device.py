"""One device as the evictor sees it: through its page, which any process of the node may read."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from typing import Final, NamedTuple

from muxflow.contracts import Attempt
from muxflow.contracts.devices import GpuSample
from muxflow_decisions.eviction import EvictionPolicy, order
from muxflow_device.breaches import Breaches, Broken
from muxflow_device.pages import DevicePage, DeviceView, JobControl, PageError
from muxflow_device.rundir import DeviceDirectory, RunDirectory

_PERMILLE_PER_PCT = 10
_MOST_DOUBLINGS: Final = 32


class _Stop(NamedTuple):
    """What became of the orders to stop one attempt for a breach."""

    orders: int
    again_s: float | None = None
    """From when on another one may follow, by the monotonic clock; None: the last is not over."""


class WatchedDevice:
    """A device page, and what was decided from it so far."""

    def __init__(self, directory: DeviceDirectory, policy: EvictionPolicy) -> None:
        self.gpu = directory.uuid
        self._page = DevicePage(directory)
        self._breaches = Breaches(directory)
        self._stops: dict[Broken, _Stop] = {}
        self._policy = policy
        self._memory = order.OrderMemory()
        self.view = self._page.look()
        """What was seen last."""

    def look(self) -> order.Evict | None:
        """Look at the page; give the order to clear the device if it is time for that."""
        self.view = self._page.look()
        report = self.view.report
        if report is None:
            return None
        sight = order.Sight(
            condition=report.condition,
            since_ns=report.since_boottime_ns,
            hard=report.hard,
            epoch=report.epoch,
            cause=report.cause,
            fresh=self.view.fresh,
        )
        return self._advance(order.Look(sight=sight)).order

    def due_breaches(self, here: Callable[[], Collection[Attempt]]) -> tuple[Broken, ...]:
        """Give the attempts that have broken a rule and are to be stopped now; `stopped` must follow for each.

        One that is still `here` when its order is over is given again, ever more slowly: the order was refused, or the
        executor did not know the attempt yet. What a dead monitor found is as true as before.
        """
        found = self._breaches.look()
        self._stops = {broken: stop for broken, stop in self._stops.items() if broken in found}
        new = [broken for broken in found if broken not in self._stops]
        now_s = time.monotonic()
        old = [broken for broken, stop in self._stops.items() if stop.again_s is not None and stop.again_s <= now_s]
        there = here() if old else ()
        for broken in old:
            if broken.attempt in there:
                new.append(broken)
            else:
                self._wait(broken)
        for broken in new:
            self._stops[broken] = _Stop(self.orders_of(broken) + 1)
        return tuple(new)

    def stopped(self, broken: Broken) -> None:
        """Take in that the order to stop an attempt is over, well or badly."""
        if broken in self._stops:
            self._wait(broken)

    def orders_of(self, broken: Broken) -> int:
        """How many orders there were to stop an attempt."""
        return self._stops[broken].orders if broken in self._stops else 0

    def _wait(self, broken: Broken) -> None:
        orders = self._stops[broken].orders
        doublings = min(orders - 1, _MOST_DOUBLINGS)
        wait_s = min(self._policy.repeat_first_s * 2**doublings, self._policy.repeat_longest_s)
        self._stops[broken] = _Stop(orders, time.monotonic() + wait_s)

    def answered(self, answer: order.CarriedOut | order.Failed) -> None:
        """Take in what became of an order."""
        self._advance(answer)

    def close(self) -> None:
        """Let the page go."""
        self._page.close()

    def _advance(self, stimulus: order.OrderStimulus) -> order.OrderOutcome:
        now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        outcome = order.advance(self._memory, stimulus, now_ns=now_ns, policy=self._policy)
        self._memory = outcome.memory
        return outcome


def sample_of(gpu: str, view: DeviceView) -> GpuSample | None:
    """Put a device's readings into words of the bus; None while there are none to be believed."""
    report = view.report
    if report is None or not view.fresh:
        return None
    return GpuSample(
        gpu=gpu,
        state=report.condition,
        utilization_pct=_pct(report.utilization_permille),
        sm_activity_pct=_pct(report.sm_activity_permille),
        memory_used_bytes=report.memory_used_bytes,
        memory_total_bytes=report.memory_total_bytes,
        offline_memory_bytes=report.offline_memory_bytes,
        sm_clock_mhz=report.sm_clock_mhz,
        online_activity_pct=_pct(report.online_activity_permille),
        offline_busy_permille=report.offline_busy_permille,
        budget_permille=view.gate.budget_permille,
    )


def attempts_on(run: RunDirectory, gpu: str) -> list[Attempt]:
    """Find the attempts that are on a GPU, by their job control.

    One with a name too long for a directory is not found here; the executor knows it.
    """
    found = []
    for directory in run.jobs():
        attempt = directory.attempt
        try:
            control = JobControl.read(directory.control_page)
        except (PageError, OSError):  # it comes or goes just now, or is none of ours
            continue
        if attempt is not None and control.limits.gpu == gpu:
            found.append(attempt)
    return found


def _pct(permille: int | None) -> float | None:
    return permille / _PERMILLE_PER_PCT if permille is not None else None
