"""The scheduler: waits to lead, leads one term, and begins anew.

Any number of schedulers may run; one of them leads. The others hold nothing in memory and take over when the leader's
lease ends.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from typing import Final

from muxflow.bus import Bus, BusError
from muxflow.contracts import LeaderLease
from muxflow.contracts.catalogue import BUCKET_LEADER, QUERY_DEVICES, QUERY_JOB, QUERY_JOBS, QUERY_NODES, QUERY_QUEUE
from muxflow.health import Health
from muxflow.service import Service
from muxflow_scheduler.answers import Answers
from muxflow_scheduler.ledger import Superseded
from muxflow_scheduler.metrics import SchedulerMetrics
from muxflow_scheduler.settings import SchedulerSettings
from muxflow_scheduler.solver import Solver
from muxflow_scheduler.term import Term

_PAUSE_S: Final = 0.1
_PAUSE_MAX_S: Final = 2.0
_SETTLED_S: Final = 30.0
"""A term that lasted this long was no failure to take over."""


class Scheduler(Service[SchedulerSettings]):
    """Records jobs, decides which GPU each runs on, and ends them."""

    name = "scheduler"

    def __init__(self, settings: SchedulerSettings, bus: Bus, health: Health) -> None:
        super().__init__(settings, bus, health)
        self._solver = Solver()
        self._metrics = SchedulerMetrics(self.registry, solver_restarts=lambda: self._solver.restarts)
        holder = f"{socket.gethostname()}:{os.getpid()}"
        self._lease = bus.lease(
            BUCKET_LEADER,
            self.name,
            lambda: LeaderLease(holder=holder, time_ns=time.time_ns()),
            ttl_s=settings.lease.leader_s,
        )
        self._campaign: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Run for leadership."""
        self._campaign = self.spawn(self._lead_for_ever(), name="campaign")

    async def stop(self, received: signal.Signals) -> None:
        """Hand the lead over at once instead of letting it time out."""
        self.log.info("handing the lead over", signal=received.name)
        if self._campaign is not None:
            self._campaign.cancel()
            await asyncio.wait((self._campaign,))
        await self._lease.release()
        await self._solver.close()

    async def _lead_for_ever(self) -> None:
        pause_s = _PAUSE_S
        while True:
            number = await self._lease.acquire()
            self._metrics.term.set(number)
            begun_s = time.monotonic()
            await self._lead(number)
            lasted = time.monotonic() - begun_s > _SETTLED_S
            pause_s = _PAUSE_S if lasted else min(2 * pause_s, _PAUSE_MAX_S)
            await asyncio.sleep(pause_s)

    async def _lead(self, number: int) -> None:
        """Lead one term until the lease is lost or the term fails for a reason that another term may not have."""
        term = Term(self.bus, self.settings, number, self._metrics, solve=self._solver.solve)
        reigning = asyncio.ensure_future(self._reign(term))
        lost = asyncio.ensure_future(self._lease.lost.wait())
        try:
            await asyncio.wait((reigning, lost), return_when=asyncio.FIRST_COMPLETED)
            if reigning.done():
                reigning.result()
            self.log.warning("lead lost: the lease ended", term=number)
        except (Superseded, BusError) as error:
            self.log.warning("lead lost", term=number, reason=str(error))
        finally:
            self._metrics.leading.set(0)
            for task in (reigning, lost):
                task.cancel()
            await asyncio.wait((reigning, lost))
            await term.close()
            await self._lease.release()

    async def _reign(self, term: Term) -> None:
        """Take over, then answer questions until the term fails; raises why."""
        self.spawn(self._solver.start(), name="solver")  # before the first job waits for it
        await term.open()
        answers = Answers(term)
        responder = await self.bus.serve(
            "muxflow-scheduler",
            "1.0.0",
            {
                QUERY_JOBS: answers.jobs,
                QUERY_JOB: answers.job,
                QUERY_QUEUE: answers.queue,
                QUERY_NODES: answers.nodes,
                QUERY_DEVICES: answers.devices,
            },
        )
        self._metrics.leading.set(1)
        try:
            await term.failed
        finally:
            await responder.stop()
