"""What the scheduler remembers of the predictor's answers, over a real server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from muxflow.bus import Bus, Message
from muxflow.bus.credentials import Principal
from muxflow.contracts import Pair, Role, Speed, SpeedModel, SpeedsQuery, SpeedsReply
from muxflow.contracts.catalogue import QUERY_SPEEDS, SPEEDS
from muxflow_decisions.matching import Measured, Spot
from muxflow_scheduler.speeds import Speeds
from world import World

PATIENCE_S = 10.0
JOB: Measured = ("default/net", 2**30)
CHAT = Spot("T4", 16 * 2**30, "chat", 50)
SEARCH = Spot("T4", 16 * 2**30, "search", 50)


class Answerer:
    def __init__(self) -> None:
        self.asked: list[Pair] = []
        self.generation = 1
        self.throughput = 0.5

    async def answer(self, message: Message[SpeedsQuery]) -> SpeedsReply:
        self.asked += message.event.pairs
        speed = Speed(normalized_throughput=self.throughput, low=0, high=1, fits_probability=0.9, basis="model")
        return SpeedsReply(speeds=(speed,) * len(message.event.pairs), generation=self.generation)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """A server, and no scheduler."""
    world = World(tmp_path, nodes={}, env={})
    try:
        await world.start_servers()
        yield world
    finally:
        await world.stop()


@pytest.fixture
async def predictor(world: World) -> AsyncIterator[Bus]:
    async with await world.connect(Principal(role=Role.PREDICTOR)) as bus:
        yield bus


@pytest.fixture
async def answerer(predictor: Bus) -> Answerer:
    answerer = Answerer()
    await predictor.serve("muxflow-predictor", "1.0.0", {QUERY_SPEEDS: answerer.answer})
    return answerer


@pytest.fixture
async def bus(world: World) -> AsyncIterator[Bus]:
    async with await world.connect(Principal(role=Role.SCHEDULER)) as bus:
        yield bus


async def opened(bus: Bus, *, refresh_s: float = 3600.0, wanted: bool = True) -> Speeds:
    speeds = Speeds(bus, wanted=wanted, refresh_s=refresh_s)
    await speeds.load()
    return speeds


async def test_a_pair_is_asked_for_once_while_what_is_known_holds(bus: Bus, answerer: Answerer) -> None:
    speeds = await opened(bus)
    for _ in range(3):
        await speeds.learn([(JOB, CHAT), (JOB, SEARCH)], patience_s=PATIENCE_S)
    assert [(each.offline_key, each.workload, each.sm_share_pct) for each in answerer.asked] == [
        ("default/net", "chat", 50),
        ("default/net", "search", 50),
    ]
    assert speeds.get(JOB, CHAT) == Speed(normalized_throughput=0.5, low=0, high=1, fits_probability=0.9, basis="model")
    table = speeds.table([(JOB, CHAT), (JOB, Spot("A100", 1))])
    assert (list(table.permille), table.spots) == ([JOB], (CHAT,))
    await speeds.close()


async def test_when_answers_may_have_changed_they_are_asked_for_again(bus: Bus, answerer: Answerer) -> None:
    speeds = await opened(bus)
    await speeds.learn([(JOB, CHAT)], patience_s=PATIENCE_S)
    answerer.generation, answerer.throughput = 2, 0.7
    await speeds.learn([(JOB, SEARCH)], patience_s=PATIENCE_S)  # its answer tells of the new generation
    assert len(answerer.asked) == 2
    await speeds.learn([(JOB, CHAT)], patience_s=0)
    await _until_known(speeds, 0.7)
    assert len(answerer.asked) == 3
    await speeds.close()


async def test_a_new_model_makes_what_is_known_out_of_date(bus: Bus, predictor: Bus, answerer: Answerer) -> None:
    speeds = await opened(bus)
    await predictor.publish(SPEEDS, _model("1"), model="speed")
    await speeds.learn([(JOB, CHAT)], patience_s=PATIENCE_S)
    answerer.throughput = 0.7
    await predictor.publish(SPEEDS, _model("2"), model="speed")
    await _until_known(speeds, 0.7)
    await speeds.close()


def _model(version: str) -> SpeedModel:
    return SpeedModel(model="speed", version=version, object_name="speed", trained_rows=1)


async def _until_known(speeds: Speeds, throughput: float) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while (found := speeds.get(JOB, CHAT)) is None or found.normalized_throughput != throughput:
            await speeds.learn([(JOB, CHAT)], patience_s=0)
            await asyncio.sleep(0.01)


async def test_while_nobody_answers_nobody_is_asked_again_and_again(bus: Bus, predictor: Bus) -> None:
    speeds = await opened(bus)
    await speeds.learn([(JOB, CHAT)], patience_s=PATIENCE_S)
    answerer = Answerer()
    await predictor.serve("muxflow-predictor", "1.0.0", {QUERY_SPEEDS: answerer.answer})
    await speeds.learn([(JOB, CHAT)], patience_s=PATIENCE_S)
    assert answerer.asked == []
    assert speeds.get(JOB, CHAT) is None
    await speeds.close()


async def test_where_predictions_are_switched_off_nobody_is_asked(bus: Bus, answerer: Answerer) -> None:
    speeds = await opened(bus, wanted=False)
    await speeds.learn([(JOB, CHAT)], patience_s=PATIENCE_S)
    assert answerer.asked == []
    await speeds.close()
