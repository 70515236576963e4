"""The gate: what offline work may launch on a device, and how a device's and a job's word combine.

Layout and rules of the page are in `xcuda-preload/include/muxflow_pages.h`; this is the same in values.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from muxflow.contracts.event import Permille

WindowUs = Annotated[int, Meta(ge=0, le=65_535)]
"""Bound on the estimated device time of what is queued and not complete, in microseconds; 16 bits of the gate word."""


class GateState(IntEnum):
    """Numbers as on the page."""

    FROZEN = 0
    """Nothing is launched."""
    TRICKLE = 1
    """Device: only a job that is told to trickle may launch. Job: it launches under its small budget."""
    OPEN = 2


class JobPhase(IntEnum):
    """Why a job's gate is as it is. Numbers as on the page."""

    RUN = 0
    CHECKPOINT = 1
    """Asked to save: the gate trickles."""
    STOP = 2
    """SIGTERM was sent: drain, then let the signal through; a program with a handler of its own trickles."""
    STOP_HARD = 3
    """The same without any trickle."""


class Gate(msgspec.Struct, frozen=True, kw_only=True):
    """One gate word, without the epoch that the page packs with it."""

    state: GateState
    budget_permille: Permille = 0
    """Device: cap on the share of wall time in which offline operations run. Job: its share of that, or the trickle."""
    window_us: WindowUs = 0


FROZEN: Final = Gate(state=GateState.FROZEN)


def combine(device: Gate, job: Gate) -> Gate:
    """What holds for a job: the stricter of the device's word and its own.

    A job's budget is its share of the device's while it is open, and a budget of its own while it trickles, which is
    never more than an open device's.
    """
    state = _combined(device.state, job.state)
    if state is GateState.FROZEN:
        return FROZEN
    if state is GateState.OPEN:
        budget = device.budget_permille * job.budget_permille // 1000
    elif device.state is GateState.OPEN:
        budget = min(device.budget_permille, job.budget_permille)
    else:
        budget = job.budget_permille
    return Gate(state=state, budget_permille=budget, window_us=min(device.window_us, job.window_us))


def _combined(device: GateState, job: GateState) -> GateState:
    if device is GateState.OPEN:
        return job
    if device is GateState.TRICKLE and job is GateState.TRICKLE:
        return GateState.TRICKLE
    return GateState.FROZEN
