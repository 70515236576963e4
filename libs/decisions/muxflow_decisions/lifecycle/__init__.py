"""The life of one job: a machine that takes a record and a stimulus, and gives a record and instructions.

    outcome = advance(record, stimulus, now_ns=now, policy=RetryPolicy())

The caller commits `outcome.record` first and carries out `outcome.instructions` after that.
"""

from __future__ import annotations

from muxflow_decisions.lifecycle.desired import decide
from muxflow_decisions.lifecycle.instructions import Announce, Decide, Instruction, Note, Outcome, Wake
from muxflow_decisions.lifecycle.invariants import InvalidRecord, validate
from muxflow_decisions.lifecycle.machine import advance, submit
from muxflow_decisions.lifecycle.measuring import Plan, Spots, Turn, plan, verdict
from muxflow_decisions.lifecycle.outcomes import accepted_event, rejected_event, terminal_event
from muxflow_decisions.lifecycle.retry import RetryPolicy, holds_back
from muxflow_decisions.lifecycle.stimuli import (
    Assign,
    Cancel,
    NodeLost,
    ProfileDone,
    ProfileGivenUp,
    Stimulus,
    Submit,
    Withdraw,
)
from muxflow_decisions.lifecycle.story import STORY_LENGTH, story

__all__ = [
    "STORY_LENGTH",
    "Announce",
    "Assign",
    "Cancel",
    "Decide",
    "Instruction",
    "InvalidRecord",
    "NodeLost",
    "Note",
    "Outcome",
    "Plan",
    "ProfileDone",
    "ProfileGivenUp",
    "RetryPolicy",
    "Spots",
    "Stimulus",
    "Submit",
    "Turn",
    "Wake",
    "Withdraw",
    "accepted_event",
    "advance",
    "decide",
    "holds_back",
    "plan",
    "rejected_event",
    "story",
    "submit",
    "terminal_event",
    "validate",
    "verdict",
]
