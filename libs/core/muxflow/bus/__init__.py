"""The bus: typed events over NATS with JetStream."""

from __future__ import annotations

from muxflow.bus.batches import PublishAck
from muxflow.bus.bus import Bus, Subscription
from muxflow.bus.consumer import Consumer, ConsumerLag, OnInvalid
from muxflow.bus.errors import (
    BusError,
    Disconnected,
    Forbidden,
    KeyExists,
    NoResponders,
    ObjectDamaged,
    OutboxFull,
    PayloadTooLarge,
    PublishRefused,
    PublishTimeout,
    QueryError,
    RequestTimeout,
    Retry,
    StreamFull,
    Undeliverable,
    WrongLastSequence,
)
from muxflow.bus.key_value import Entry, KeyValue, Removal
from muxflow.bus.lease import Lease
from muxflow.bus.message import Delivery, Handler, Message, RawMessage
from muxflow.bus.objects import ObjectStore
from muxflow.bus.outbox import Outbox
from muxflow.bus.queries import QueryHandler, Responder
from muxflow.bus.reader import FromSequence, FromTime, Reader, Start
from muxflow.bus.settings import BusSettings

__all__ = [
    "Bus",
    "BusError",
    "BusSettings",
    "Consumer",
    "ConsumerLag",
    "Delivery",
    "Disconnected",
    "Entry",
    "Forbidden",
    "FromSequence",
    "FromTime",
    "Handler",
    "KeyExists",
    "KeyValue",
    "Lease",
    "Message",
    "NoResponders",
    "ObjectDamaged",
    "ObjectStore",
    "OnInvalid",
    "Outbox",
    "OutboxFull",
    "PayloadTooLarge",
    "PublishAck",
    "PublishRefused",
    "PublishTimeout",
    "QueryError",
    "QueryHandler",
    "RawMessage",
    "Reader",
    "Removal",
    "RequestTimeout",
    "Responder",
    "Retry",
    "Start",
    "StreamFull",
    "Subscription",
    "Undeliverable",
    "WrongLastSequence",
]
