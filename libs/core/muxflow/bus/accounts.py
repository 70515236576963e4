"""Accounts of the server: whoever may not be trusted has one alone, everybody else shares the main one.

Within an account the server checks where somebody publishes, and not where the answer goes. An answer to another
account goes back to whoever asked, into the account it asked from. So principals that are not run by us stand outside
and import from the main account what their permissions allow.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from muxflow.bus.credentials import Principal
from muxflow.bus.permissions import permissions
from muxflow.contracts import Role

MAIN: Final = "muxflow"
"""Where JetStream, our services, nodes and operators are."""

ISOLATED: Final = frozenset({Role.USER, Role.ONLINE})
"""Roles whose principals have an account each."""


class Shared(msgspec.Struct, frozen=True, kw_only=True):
    """What one isolated principal and the main account exchange: patterns, sorted."""

    services: tuple[str, ...]
    """What it publishes: heard in the main account, answers come back."""
    streams: tuple[str, ...]
    """What it reads live."""


def account_of(principal: Principal) -> str:
    """Name of the account that somebody is in."""
    return principal.name if principal.role in ISOLATED else MAIN


def shared_with(principal: Principal) -> Shared:
    """Give all that an isolated principal's permissions allow. Its inbox is at home."""
    allowed = permissions(principal.role, principal.bound_to)
    inbox = f"{principal.inbox_prefix}.>"
    return Shared(services=allowed.publish, streams=tuple(name for name in allowed.subscribe if name != inbox))


def isolated(principals: Iterable[Principal]) -> tuple[Principal, ...]:
    """Give those that have an account each."""
    return tuple(principal for principal in principals if principal.role in ISOLATED)
