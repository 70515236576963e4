"""The predictor: learns from measured pairs how fast an offline job is beside an online service, and answers."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from muxflow.bus import Bus, BusError, Disconnected, Message, NoResponders, Reader, RequestTimeout
from muxflow.contracts import NodeState
from muxflow.contracts.catalogue import (
    NODES_STATE,
    PROFILES_CORUN,
    PROFILES_OFFLINE,
    PROFILES_ONLINE,
    QUERY_PREDICT,
    QUERY_SPEEDS,
)
from muxflow.contracts.profiles import CorunProfile, OfflineProfile, OnlineProfile
from muxflow.health import Health
from muxflow.service import Service
from muxflow_decisions.speed import Progress, judge, why_train
from muxflow_predictor import shipped
from muxflow_predictor.answers import Answers
from muxflow_predictor.knowledge import Knowledge
from muxflow_predictor.measurements import Measurements
from muxflow_predictor.metrics import PredictorMetrics
from muxflow_predictor.model import ModelError
from muxflow_predictor.models import STORE, Models, Serving
from muxflow_predictor.orders import TrainingOrder
from muxflow_predictor.settings import PredictorSettings
from muxflow_predictor.trainer import TrainingFailed, trained

T = TypeVar("T")

_LOOK_S: Final = 60.0
"""How often the age of the model is looked at."""
_SAVE_AFTER_S: Final = 30.0
_STOP_S: Final = 3.0
_AGAIN_S: Final = 1.0
_DAY_S: Final = 86_400.0


class Predictor(Service[PredictorSettings]):
    """Answers how fast jobs would be beside services, and keeps the model that says so."""

    name = "predictor"

    def __init__(self, settings: PredictorSettings, bus: Bus, health: Health) -> None:
        super().__init__(settings, bus, health)
        section = settings.predictor
        self._metrics = PredictorMetrics(self.registry)
        self._knowledge = Knowledge()
        self._measurements = Measurements(section.measured, rows_max=section.rows_max)
        self._answers = Answers(section, self._knowledge, self._measurements, self._metrics)
        self._models = Models(bus)
        self._store = bus.objects(STORE)
        self._coruns: list[CorunProfile] | None = []
        """Measurements that came before all profiles had; None once they have."""
        self._look = asyncio.Event()
        self._trained_ns: int | None = None

    async def start(self) -> None:
        """Answer at once, with what is there; the model and old measurements follow."""
        self.health.require("profiles", lambda: None if self._coruns is None else "not read yet")
        self._metrics.observe(rows=lambda: len(self._measurements), generation=lambda: self._answers.generation)
        readers = [
            await self.bus.read(NODES_STATE, self._node_changed),
            await self.bus.read(PROFILES_OFFLINE, self._offline_changed),
            await self.bus.read(PROFILES_ONLINE, self._online_changed),
            await self.bus.read(PROFILES_CORUN, self._corun_changed),
        ]
        await self.bus.serve(
            "muxflow-predictor",
            "1.0.0",
            {QUERY_SPEEDS: self._answers.speeds, QUERY_PREDICT: self._answers.predict},
        )
        self.spawn(self._begin(readers), name="begin")

    async def stop(self, received: signal.Signals) -> None:
        """Keep the newest measurements."""
        del received
        if self._measurements.unsaved and self._coruns is None:
            with contextlib.suppress(BusError, TimeoutError):
                async with asyncio.timeout(_STOP_S):
                    await self._measurements.save(self._store)

    # --- learning

    def _node_changed(self, message: Message[NodeState]) -> None:
        if self._knowledge.take_node(message.event):
            self._answers.changed()

    def _offline_changed(self, message: Message[OfflineProfile]) -> None:
        if self._knowledge.take_offline(message.event):
            self._answers.changed()

    def _online_changed(self, message: Message[OnlineProfile]) -> None:
        if self._knowledge.take_online(message.event):
            self._answers.changed()

    def _corun_changed(self, message: Message[CorunProfile]) -> None:
        if self._coruns is not None:
            self._coruns.append(message.event)
        else:
            self._measured(message.event)

    def _measured(self, corun: CorunProfile) -> None:
        row = self._knowledge.row(corun)
        if row is not None and self._measurements.take(row):
            self._answers.changed()
            self._look.set()

    # --- the model

    async def _begin(self, readers: list[Reader]) -> None:
        """Read everything that is there; then keep the model good for ever."""
        for reader in readers:
            await reader.caught_up()
        await self._patiently(lambda: self._measurements.load(self._store))
        waiting, self._coruns = self._coruns or [], None
        for corun in waiting:
            self._measured(corun)
        if (model := await self._patiently(self._models.newest)) is not None:
            self._serve(model)
        self.spawn(self._save_now_and_then(), name="save")
        await asyncio.sleep(self.settings.predictor.settle_s)
        await self._keep_trained()

    async def _keep_trained(self) -> None:
        section = self.settings.predictor
        pause_s = section.training_retry_s
        while True:
            reason = why_train(self._progress(), now_ns=time.time_ns(), policy=section.policy)
            if reason is None:
                await self._something_new()
            elif await self._train(reason):
                pause_s = section.training_retry_s
            else:
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _DAY_S)

    def _progress(self) -> Progress:
        own = len(self._measurements)
        return Progress(
            rows=own + (shipped.count() if own < self.settings.predictor.policy.shipped_until_rows else 0),
            new_rows=self._measurements.new_rows,
            trained_ns=self._trained_ns,
        )

    async def _something_new(self) -> None:
        """Wait for a new measurement, or until it is time to look at the model's age."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LOOK_S):
                await self._look.wait()
        self._look.clear()

    async def _train(self, reason: str) -> bool:
        """Train a model, and have it serve if it is better; False if there was no training."""
        section, serving = self.settings.predictor, self._answers.serving
        order = TrainingOrder(
            rows=self._measurements.all(),
            present=serving.trees if serving else None,
            policy=section.policy,
            threads=section.training_threads,
        )
        new_rows, began_ns = self._measurements.begin_training(), time.time_ns()
        self.log.info("training", reason=reason, rows=len(order.rows))
        try:
            result = await trained(order, timeout_s=section.training_timeout_s)
            verdict = judge(result.present, result.candidate, result.assumed, policy=section.policy)
            if verdict.promote:
                self._serve(await self._patiently(lambda: self._models.promote(result)))
        except (TrainingFailed, ModelError, BusError) as error:
            self._measurements.new_rows += new_rows
            self._metrics.trainings.labels("failed").inc()
            self.log.warning("no training", error=str(error))
            return False
        self._trained_ns = began_ns
        self._metrics.trainings.labels("promoted" if verdict.promote else "refused").inc()
        self.log.info(
            "new model" if verdict.promote else "the present model stays",
            reason=verdict.reason,
            took_s=round((time.time_ns() - began_ns) / 1e9, 2),
            **result.candidate.told(),
        )
        return True

    def _serve(self, model: Serving) -> None:
        self._answers.serve(model)
        self._trained_ns = model.trained_ns
        for figure, value in model.told.evaluation.items():
            self._metrics.evaluation.labels(figure).set(value)
        self.log.info("serving", version=model.told.version, measured_on=model.told.measured_on)

    async def _save_now_and_then(self) -> None:
        while True:
            await asyncio.sleep(_SAVE_AFTER_S)
            if self._measurements.unsaved:
                try:
                    await self._patiently(lambda: self._measurements.save(self._store))
                except BusError as error:  # such as a server that has no room for them
                    self.log.warning("measurements are not kept", reason=str(error))

    async def _patiently(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do something on the bus, again and again until it is done."""
        complaint = ""
        while True:
            try:
                return await work()
            except (Disconnected, RequestTimeout, NoResponders) as error:
                if str(error) != complaint:
                    complaint = str(error)
                    self.log.warning("the object store does not answer, trying again", reason=complaint)
            await asyncio.sleep(_AGAIN_S)
