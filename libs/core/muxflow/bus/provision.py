"""Provisioning: makes the server's streams, durables and buckets as the catalogue says, and changes nothing else.

Run it as often as you like. It never deletes anything.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any, Final, Literal

import msgspec
import structlog

from muxflow.bus.bus import Bus
from muxflow.bus.errors import BusError, Disconnected, NoResponders, RequestTimeout
from muxflow.bus.requests import ApiError
from muxflow.contracts import BUCKETS, DURABLES, STREAMS, Bucket, Durable, Stream
from muxflow.contracts.catalogue import OBJECT_STORES

log = structlog.get_logger("muxflow.bus")

_SECOND_NS: Final = 10**9
_DUPLICATE_WINDOW_S: Final = 120.0
_SUBMITTED_BYTES_MAX: Final = 1 << 20
"""Largest message on streams with durables, so that its dead letter (a third larger) fits ``max_payload``."""
_STREAM_NOT_FOUND: Final = 10059
_CONSUMER_NOT_FOUND: Final = 10014
_NOT_READY: Final = frozenset({10008, 10009, 10023, 10074, 10118})
"""No quorum yet, no leader yet, not enough servers yet."""
_WITH_DURABLES: Final = frozenset(durable.stream for durable in DURABLES)


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was made or changed."""

    kind: Literal["stream", "durable"]
    name: str
    action: Literal["created", "updated"]
    settings: tuple[str, ...] = ()
    """Settings that were different."""


async def provision(
    bus: Bus,
    *,
    replicas: int = 1,
    ttl_s: Mapping[str, float] | None = None,
    bytes_scale: float = 1.0,
    deadline_s: float = 60.0,
) -> list[Change]:
    """Make everything in the catalogue exist with the settings it has there.

    `replicas` of file streams: 1, 3 or 5. `ttl_s` overrides the TTL of buckets by name. `bytes_scale` multiplies the
    bounds of streams, for small disks. Waits up to `deadline_s` for a cluster that is still electing.

    Raises `BusError`; `ApiError` for what the server refuses, such as another storage for an existing stream.
    """
    until = time.monotonic() + deadline_s
    overrides = ttl_s or {}
    wanted = [
        *(_stream(stream, replicas, bytes_scale) for stream in STREAMS),
        *(_bucket(bucket, replicas, overrides.get(bucket.name, bucket.ttl_s)) for bucket in BUCKETS),
        *(_object_store(name, replicas) for name in OBJECT_STORES),
    ]
    changes = [change for config in wanted if (change := await _ensure_stream(bus, config, until))]
    changes += [change for durable in DURABLES if (change := await _ensure_durable(bus, durable, until))]
    for change in changes:
        log.info("provisioned", **msgspec.structs.asdict(change))
    return changes


def _stream(stream: Stream, replicas: int, bytes_scale: float) -> dict[str, Any]:
    return {
        "name": stream.name,
        "description": stream.doc,
        "subjects": list(stream.subjects),
        "retention": "limits",
        "storage": stream.storage,
        "discard": stream.discard,
        "max_age": int(stream.max_age_s * _SECOND_NS),
        "max_bytes": max(1 << 20, int(stream.max_bytes * bytes_scale)),
        "max_msg_size": _SUBMITTED_BYTES_MAX if stream.name in _WITH_DURABLES else -1,
        "max_msgs_per_subject": 1 if stream.last_per_subject else -1,
        "num_replicas": replicas if stream.storage == "file" else 1,
        "duplicate_window": int(_DUPLICATE_WINDOW_S * _SECOND_NS),
        "allow_direct": True,
        "allow_atomic": stream.storage == "file",
    }


def _bucket(bucket: Bucket, replicas: int, ttl_s: float) -> dict[str, Any]:
    window_s = min(_DUPLICATE_WINDOW_S, ttl_s or _DUPLICATE_WINDOW_S)
    return {
        "name": f"KV_{bucket.name}",
        "description": bucket.doc,
        "subjects": [f"$KV.{bucket.name}.>"],
        "retention": "limits",
        "storage": "file",
        "discard": "new",
        "max_age": int(ttl_s * _SECOND_NS),
        "max_msgs_per_subject": 1,
        "num_replicas": replicas,
        "duplicate_window": int(window_s * _SECOND_NS),
        "allow_direct": True,
        "allow_rollup_hdrs": True,
        "allow_atomic": True,
        "deny_delete": True,
    }


def _object_store(name: str, replicas: int) -> dict[str, Any]:
    return {
        "name": f"OBJ_{name}",
        "subjects": [f"$O.{name}.C.>", f"$O.{name}.M.>"],
        "retention": "limits",
        "storage": "file",
        "discard": "new",
        "num_replicas": replicas,
        "allow_direct": True,
        "allow_rollup_hdrs": True,
    }


def _durable(durable: Durable) -> dict[str, Any]:
    return {
        "durable_name": durable.name,
        "name": durable.name,
        "filter_subjects": list(durable.filters),
        "deliver_policy": "all",
        "ack_policy": "explicit",
        "ack_wait": int(durable.ack_wait_s * _SECOND_NS),
        "max_deliver": durable.max_deliver,
        "max_ack_pending": durable.max_ack_pending,
    }


async def _ensure_stream(bus: Bus, wanted: dict[str, Any], until: float) -> Change | None:
    name = wanted["name"]
    found = await _info(bus, f"STREAM.INFO.{name}", _STREAM_NOT_FOUND, until)
    if found is None:
        await _api(bus, f"STREAM.CREATE.{name}", wanted, until)
        return Change(kind="stream", name=name, action="created")
    different = _different(wanted, found)
    if not different:
        return None
    await _api(bus, f"STREAM.UPDATE.{name}", {**found, **wanted}, until)
    return Change(kind="stream", name=name, action="updated", settings=different)


async def _ensure_durable(bus: Bus, durable: Durable, until: float) -> Change | None:
    wanted = _durable(durable)
    name = f"{durable.stream}.{durable.name}"
    found = await _info(bus, f"CONSUMER.INFO.{name}", _CONSUMER_NOT_FOUND, until)
    if found is not None and "filter_subject" in found:
        found["filter_subjects"] = [found.pop("filter_subject")]
    different = _different(wanted, found) if found is not None else ()
    if found is not None and not different:
        return None
    request = {
        "stream_name": durable.stream,
        "config": wanted if found is None else {**found, **wanted},
        "action": "create" if found is None else "update",
    }
    await _api(bus, f"CONSUMER.CREATE.{name}", request, until)
    return Change(kind="durable", name=name, action="created" if found is None else "updated", settings=different)


def _different(wanted: dict[str, Any], found: dict[str, Any]) -> tuple[str, ...]:
    return tuple(key for key, value in wanted.items() if found.get(key, _unset(value)) != value)


def _unset(value: Any) -> Any:
    """What a setting is that the server leaves out of its answer."""
    return type(value)()


async def _info(bus: Bus, subject: str, not_found: int, until: float) -> dict[str, Any] | None:
    try:
        answer = await _api(bus, subject, None, until)
    except ApiError as error:
        if error.code == not_found:
            return None
        raise
    config: dict[str, Any] = answer["config"]
    return config


async def _api(bus: Bus, subject: str, request: dict[str, Any] | None, until: float) -> dict[str, Any]:
    """Ask, again and again while the server or its cluster is not ready."""
    while True:
        problem: BusError
        try:
            await asyncio.wait_for(bus.connection.wait_connected(), max(0.1, until - time.monotonic()))
            return await bus.requests.api(subject, request, timeout_s=5.0)
        except (NoResponders, RequestTimeout, Disconnected) as error:
            problem = error
        except TimeoutError:
            raise Disconnected("no connection to the server") from None
        except ApiError as error:
            if error.code not in _NOT_READY:
                raise
            problem = error
        if time.monotonic() > until:
            raise problem
        await asyncio.sleep(0.2)
