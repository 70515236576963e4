"""Answers to questions about pairs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from http import HTTPStatus
from typing import Final

from msgspec.structs import replace

from muxflow.bus import Message, QueryError
from muxflow.contracts import ALL_TENANTS
from muxflow.contracts.profiles import OnlineProfile
from muxflow.contracts.queries import (
    Pair,
    Prediction,
    PredictQuery,
    PredictReply,
    Speed,
    SpeedsQuery,
    SpeedsReply,
)
from muxflow_decisions.device.sm_share import sm_share_pct
from muxflow_decisions.speed import (
    PairFacts,
    PairName,
    alone,
    assumed,
    did_not_fit,
    facts_of,
    features,
    fits_by_memory,
    newest_measured,
    speed_measured,
)
from muxflow_predictor.knowledge import Knowledge
from muxflow_predictor.measurements import Measurements
from muxflow_predictor.metrics import PredictorMetrics
from muxflow_predictor.models import Serving
from muxflow_predictor.settings import PredictorSection

PAIRS_MAX: Final = 2_000
_CACHED_MAX: Final = 200_000
_MODEL: Final = "model"


class Answers:
    """Handlers of the predictor's questions. Equal questions have equal answers until the generation grows."""

    def __init__(
        self,
        section: PredictorSection,
        knowledge: Knowledge,
        measurements: Measurements,
        metrics: PredictorMetrics,
    ) -> None:
        self._section = section
        self._knowledge = knowledge
        self._measurements = measurements
        self._metrics = metrics
        self._serving: Serving | None = None
        self._cache: dict[Pair, Speed] = {}
        self._asking = asyncio.Lock()
        self.generation = time.time_ns() // 1_000_000
        """Begins with the time in milliseconds, so that it grows over restarts too."""

    @property
    def serving(self) -> Serving | None:
        """The model that is asked."""
        return self._serving

    def serve(self, model: Serving) -> None:
        """Ask this model from now on."""
        self._serving = model
        self.changed()

    def changed(self) -> None:
        """Forget what was answered: something has changed."""
        self.generation += 1
        self._cache = {}

    async def speeds(self, message: Message[SpeedsQuery]) -> SpeedsReply:
        """Predict many pairs. QueryError 400 if they are too many."""
        pairs = message.event.pairs
        if len(pairs) > PAIRS_MAX:
            raise QueryError(HTTPStatus.BAD_REQUEST, f"{len(pairs)} pairs; ask about at most {PAIRS_MAX} at once")
        generation, serving = self.generation, self._serving
        with self._metrics.answer_seconds.time():
            speeds = await self._speeds(pairs)
        return SpeedsReply(speeds=tuple(speeds), version=serving.told.version if serving else "", generation=generation)

    async def predict(self, message: Message[PredictQuery]) -> PredictReply:
        """Tell what a job would get on a kind, beside each service there. QueryError 403 for a key of others."""
        query, tenant = message.event, message.names["tenant"]
        if tenant != ALL_TENANTS and not query.key.startswith(f"{tenant}/"):
            raise QueryError(HTTPStatus.FORBIDDEN, f"{query.key!r} is no profile of tenant {tenant!r}")
        services = self._knowledge.services(query.gpu_kind)
        pairs = [self._pair(query, None), *(self._pair(query, service) for service in services)]
        serving = self._serving
        speeds = await self._speeds(pairs)
        return PredictReply(
            gpu_kind=query.gpu_kind,
            profiled=self._knowledge.offline(query.key, query.gpu_kind) is not None,
            predictions=tuple(
                Prediction(
                    workload=pair.workload,
                    sm_share_pct=pair.sm_share_pct,
                    online_activity_pct=service.activity_pct_mean if service else None,
                    speed=speed,
                    measured=self._measured(pair),
                )
                for pair, service, speed in zip(pairs, (None, *services), speeds, strict=True)
            ),
            model=serving.told if serving else None,
        )

    def _pair(self, query: PredictQuery, service: OnlineProfile | None) -> Pair:
        share = None
        if service is not None:
            share = sm_share_pct(
                forecast_peak_pct=service.forecast_peak_pct, sm_count=None, policy=self._section.sm_share
            )
        return Pair(
            offline_key=query.key,
            memory_bytes=query.memory_bytes,
            gpu_kind=query.gpu_kind,
            workload=service.workload if service else None,
            sm_share_pct=share,
        )

    def _measured(self, pair: Pair) -> float | None:
        rows = self._measurements.of(_name(pair))
        return next(
            (row.normalized_throughput for row in reversed(rows) if row.normalized_throughput is not None), None
        )

    async def _speeds(self, pairs: Sequence[Pair]) -> list[Speed]:
        """Answer, from the cache where that was asked before. What the model is asked, it is asked at once."""
        cache = self._cache
        known = {pair: cache[pair] for pair in pairs if pair in cache}  # who asks meanwhile may clear it
        unknown = list(dict.fromkeys(pair for pair in pairs if pair not in known))
        answers = {pair: speed for pair in unknown if (speed := self._without_model(pair)) is not None}
        answers |= await self._by_model([pair for pair in unknown if pair not in answers])
        speeds = [known.get(pair) or answers[pair] for pair in pairs]
        if len(cache) + len(answers) > _CACHED_MAX:
            cache.clear()
        cache.update(answers)
        for speed in speeds:
            self._metrics.pairs.labels(speed.basis).inc()
        return speeds

    def _without_model(self, pair: Pair) -> Speed | None:
        """Answer what needs no model; None for what does."""
        facts = self._facts(pair)
        rule = fits_by_memory(facts)
        offline = self._knowledge.offline(pair.offline_key, pair.gpu_kind)
        if pair.workload is None:
            nobody = replace(facts, online_memory_bytes=0)
            return alone(measured=offline is not None, fits_probability=fits_by_memory(nobody))
        rows, policy, now_ns = self._measurements.of(_name(pair)), self._section.measured, time.time_ns()
        unfit = did_not_fit(rows, now_ns=now_ns, policy=policy)
        row = newest_measured(rows, sm_share_pct=pair.sm_share_pct, now_ns=now_ns, policy=policy)
        if row is not None:
            known = rule if row.fits is None else float(row.fits)
            return speed_measured(row, fits_probability=0.0 if unfit else known)
        if unfit:  # at once, and before it could be measured how fast
            return assumed(facts, fits_probability=0.0)
        if self._serving is None or offline is None or self._knowledge.online(pair.workload, pair.gpu_kind) is None:
            return assumed(facts, fits_probability=rule)
        return None

    async def _by_model(self, pairs: Sequence[Pair]) -> dict[Pair, Speed]:
        serving = self._serving
        if not pairs or serving is None:
            return {}
        history = self._measurements.history
        facts = [self._facts(pair) for pair in pairs]
        vectors = [features(known, history.of(*_name(pair))) for pair, known in zip(pairs, facts, strict=True)]
        async with self._asking:
            answers = await asyncio.to_thread(serving.predictor.predict, vectors)
        return {
            pair: Speed(
                normalized_throughput=answer.speed,
                low=answer.low,
                high=answer.high,
                fits_probability=min(1.0 if answer.fits is None else answer.fits, fits_by_memory(known)),
                basis=_MODEL,
            )
            for pair, known, answer in zip(pairs, facts, answers, strict=True)
        }

    def _facts(self, pair: Pair) -> PairFacts:
        if pair.gpu_memory_bytes is None:
            pair = replace(pair, gpu_memory_bytes=self._knowledge.memory_bytes(pair.gpu_kind))
        offline = self._knowledge.offline(pair.offline_key, pair.gpu_kind)
        online = self._knowledge.online(pair.workload, pair.gpu_kind) if pair.workload is not None else None
        return facts_of(pair, offline, online)


def _name(pair: Pair) -> PairName:
    return PairName(pair.offline_key, pair.workload or "", pair.gpu_kind)
