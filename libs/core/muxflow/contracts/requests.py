"""Requests that services and operators make of the scheduler and of a node's monitor."""

from __future__ import annotations

from muxflow.contracts.event import Event, Text


class ProfileRequest(Event, frozen=True, kw_only=True):
    """Please measure jobs with this key alone."""

    key: str
    tenant: str
    job: str
    reason: Text = ""


class ProbeRequest(Event, frozen=True, kw_only=True):
    """Please measure this pair."""

    key: str
    tenant: str
    job: str
    online_key: str
    reason: Text = ""


class EvictRequest(Event, frozen=True, kw_only=True):
    """An operator wants offline work off a GPU; the job goes back to the queue."""

    node: str
    gpu: str
    tenant: str | None = None
    """With `job`, limits the request to that job; both null means everything there."""
    job: str | None = None
    reason: Text = ""


class DeviceRequest(Event, frozen=True, kw_only=True):
    """An operator's standing wish for a device. Last message per subject."""

    node: str
    gpu: str
    enabled: bool
    reason: Text = ""
