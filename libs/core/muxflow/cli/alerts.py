"""``alerts``: what people are told about evictions, devices and online services, in their words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import typer

from muxflow.cli import gpus, output
from muxflow.cli.ages import duration
from muxflow.cli.command import Session, command
from muxflow.cli.events import HISTORY_S, FollowOption, SinceOption, when

if TYPE_CHECKING:
    from muxflow.contracts import DeviceAlert, EvictionAlert, OnlineAlert

    Alert = EvictionAlert | DeviceAlert | OnlineAlert


class Words(NamedTuple):
    """An alert for people."""

    who: str
    what: str
    grave: bool
    """Whether somebody's service is in danger; an eviction is how that is averted."""


def add_to(app: typer.Typer) -> None:
    """Add this command."""
    command(app, "muxflow alerts --since 1d", "muxflow alerts --follow --json")(alerts)


async def alerts(session: Session, *, follow: FollowOption = False, since: SinceOption = None) -> None:
    """Print alerts, oldest first: evictions, devices and online services that need a look.

    They come from GPUs that are watched. For jobs that failed see `muxflow events jobs.failed`.
    """
    history_s = since if since is not None or follow else HISTORY_S
    seen = False
    async with session.connect() as client:
        known = {} if session.as_json else await gpus.names(client)
        async for received in client.alerts(since_s=history_s, follow=follow):
            seen = True
            if session.as_json:
                output.json(received)
            else:
                words = in_words(received.event, known)
                output.line(f"{when(received, clock=follow):>8}  {words.who} {words.what}")
    if not seen and not session.as_json:
        output.line(f"none in the last {duration(history_s or 0)}")


def in_words(alert: Alert, known: Mapping[str, str]) -> Words:
    """Say what an alert says; `known` names GPUs by UUID."""
    from muxflow.contracts import EvictionAlert, OnlineAlert

    where = alert.node if alert.gpu is None else known.get(alert.gpu) or gpus.told(alert.gpu, known)
    if isinstance(alert, EvictionAlert):
        took = "going" if alert.total_ms is None else f"gone in {alert.total_ms:.0f} ms"
        whom = f" for {alert.workload}" if alert.workload else ""
        who = f"{alert.tenant}/{alert.job}#{alert.attempt}"
        what = "stopped on" if alert.breach else "evicted from"
        return Words(who, f"{what} {where}{whom}, {took}: {alert.cause}", grave=False)
    if isinstance(alert, OnlineAlert):
        return Words(alert.workload, f"on {where}: {alert.message}", grave=True)
    return Words(where, alert.message, grave=alert.severity == "critical")
