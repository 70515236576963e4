"""The model that serves, and where it is kept: the object store has it, ``speeds.<model>`` names it."""

from __future__ import annotations

import asyncio
import hashlib
import time
from datetime import UTC, datetime
from typing import Final

import msgspec
import structlog

from muxflow.bus import Bus, ObjectDamaged
from muxflow.contracts.catalogue import SPEEDS
from muxflow.contracts.profiles import SpeedModel
from muxflow_decisions.speed import PAIRS
from muxflow_predictor.model import ModelError, Predictor, SpeedTrees
from muxflow_predictor.orders import TrainingResult

log = structlog.get_logger()

STORE: Final = "models"
MODEL: Final = "speed"
_PREFIX: Final = f"{MODEL}/"
_KEPT: Final = 2


class Serving(msgspec.Struct, frozen=True, kw_only=True):
    """A model in use."""

    told: SpeedModel
    trees: SpeedTrees
    predictor: Predictor
    trained_ns: int


class StoredModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model in the object store."""

    version: str
    trained_ns: int
    trees: SpeedTrees


class Models:
    """Reads and writes models. One predictor does."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._store = bus.objects(STORE)

    async def newest(self) -> Serving | None:
        """Load the model that was promoted last; None if there is none that can be used, which the log names.

        Blocks for the half second in which LightGBM is loaded, in a thread. Raises `BusError` when the bus does not
        answer.
        """
        try:
            message = await self._bus.last(SPEEDS, model=MODEL)
        except msgspec.DecodeError as error:
            log.error("the word about the model is damaged", model=MODEL, error=str(error))  # noqa: TRY400
            return None
        if message is None:
            return None
        told: SpeedModel = message.event
        try:
            return await serving(told, _stored(await self._store.get(told.object_name)))
        except (ObjectDamaged, msgspec.DecodeError, ModelError) as error:
            log.error("the stored model cannot be used", object=told.object_name, error=str(error))  # noqa: TRY400
            return None

    async def promote(self, result: TrainingResult) -> Serving:
        """Store a model, load it, and tell that it serves from now on. Raises `BusError`, `ModelError`."""
        now_ns = time.time_ns()
        version = _version(result, now_ns)
        stored = StoredModel(version=version, trained_ns=now_ns, trees=result.trees)
        told = self._bus.completed(
            SpeedModel(
                model=MODEL,
                version=version,
                object_name=f"{_PREFIX}{version}",
                trained_rows=result.trained_rows,
                held_out_rows=result.held_out_rows,
                evaluation=result.candidate.told(),
                measured_on=result.measured_on,
            )
        )
        ready = await serving(told, stored)
        await self._store.put(told.object_name, msgspec.json.encode(stored))
        await self._bus.publish(SPEEDS, told, model=MODEL)
        await self._drop_old()
        return ready

    async def _drop_old(self) -> None:
        models = [name for name in await self._store.names() if name.startswith(_PREFIX)]
        for name in models[:-_KEPT]:
            await self._store.delete(name)


def _stored(data: bytes | None) -> StoredModel:
    """Raises `ModelError`, `msgspec.DecodeError`."""
    if data is None:
        raise ModelError("it is not there")
    stored = msgspec.json.decode(data, type=StoredModel)
    if stored.trees.names != PAIRS.names:
        raise ModelError("it was trained for other features")
    return stored


async def serving(told: SpeedModel, stored: StoredModel) -> Serving:
    """Make it answer. Raises `ModelError`."""
    predictor = await asyncio.to_thread(Predictor, stored.trees)
    return Serving(told=told, trees=stored.trees, predictor=predictor, trained_ns=stored.trained_ns)


def _version(result: TrainingResult, now_ns: int) -> str:
    """Sorts by time, and tells apart models that are the same."""
    digest = hashlib.blake2b(result.trees.speed.encode(), digest_size=4).hexdigest()
    milliseconds = now_ns // 1_000_000 % 1000
    return f"{datetime.fromtimestamp(now_ns // 10**9, UTC):%Y%m%dT%H%M%S}.{milliseconds:03}Z-{digest}"
