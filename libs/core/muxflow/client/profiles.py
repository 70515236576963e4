"""Profiles, newest of each subject."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import msgspec

from muxflow.bus import Bus, Message
from muxflow.client.errors import NoAnswer
from muxflow.contracts import CorunProfile, OfflineProfile, OnlineProfile
from muxflow.contracts.catalogue import PROFILES_CORUN, PROFILES_OFFLINE, PROFILES_ONLINE

_CATCH_UP_S: Final = 10.0


class Profiles(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that is measured, each kind sorted by what it is about."""

    offline: tuple[OfflineProfile, ...] = ()
    online: tuple[OnlineProfile, ...] = ()
    corun: tuple[CorunProfile, ...] = ()


async def read_all(bus: Bus) -> Profiles:
    """Read them. Raises `NoAnswer`."""
    offline: list[OfflineProfile] = []
    online: list[OnlineProfile] = []
    corun: list[CorunProfile] = []

    def take(message: Message[Any]) -> None:
        match message.event:
            case OfflineProfile() as job:
                offline.append(job)
            case OnlineProfile() as service:
                online.append(service)
            case CorunProfile() as pair:
                corun.append(pair)

    reader = await bus.read([PROFILES_OFFLINE, PROFILES_ONLINE, PROFILES_CORUN], take, start="last")
    try:
        async with asyncio.timeout(_CATCH_UP_S):
            await reader.caught_up()
    except TimeoutError:
        raise NoAnswer(f"profiles could not be read within {_CATCH_UP_S:g} s") from None
    finally:
        await reader.stop()
    return Profiles(
        offline=tuple(sorted(offline, key=lambda job: (job.key, job.gpu_kind))),
        online=tuple(sorted(online, key=lambda service: (service.workload, service.gpu_kind))),
        corun=tuple(sorted(corun, key=lambda pair: (pair.offline_key, pair.workload, pair.gpu_kind))),
    )
