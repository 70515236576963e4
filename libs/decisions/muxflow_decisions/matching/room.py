"""Whether more jobs can be placed beside those that are: a largest flow between classes, grown job by job.

Where jobs are is of no interest here, only that each of them could be somewhere.
"""

from __future__ import annotations

from copy import copy
from typing import Final

import msgspec
import numpy as np

from muxflow_decisions.matching.certificate import Integers
from muxflow_decisions.matching.classes import Classes

_NOBODY: Final = -1


class Shut(msgspec.Struct, frozen=True, kw_only=True):
    """Job classes of which no job more can be placed, and all GPU classes that these may be given: full with them."""

    job_classes: Integers
    gpu_classes: Integers


class _Paths(msgspec.Struct, frozen=True, kw_only=True):
    """How to come to a free GPU: a job goes to `gpu_of` its class; if none is free there, one of `job_of` makes way."""

    gpu_of: Integers
    """For each job class, a GPU class; `_NOBODY` if no free GPU can be reached."""
    job_of: Integers
    """For each GPU class, a job class; `_NOBODY` if a GPU is free, or none can become free."""


class Room:
    """Jobs and where they could be. Begins with placed jobs where they are."""

    def __init__(self, classes: Classes) -> None:
        self.used: Integers = np.zeros(classes.feasible.shape, dtype=np.int64)
        """Jobs of each class (row) on GPUs of each class (column)."""
        for number, job_class in enumerate(classes.jobs):
            for at, placed in job_class.placed.items():
                self.used[number, at] = len(placed)
        self.free = classes.sizes - self.used.sum(axis=0)
        self._limits = np.where(classes.feasible, classes.sizes, self.used)
        """Most jobs of each class on GPUs of each class: whoever may not be placed there may stay."""
        self._scarce_first = np.argsort(classes.feasible.sum(axis=0), kind="stable")

    def copy(self) -> Room:
        """The same, to go back to."""
        other = copy(self)
        other.used, other.free = self.used.copy(), self.free.copy()
        return other

    def take(self, demand: Integers) -> Shut | None:
        """Place so many jobs more of each class. Unless all can be: what is shut."""
        left = demand.copy()
        for number in left.nonzero()[0].tolist():
            left[number] -= self._fill(number, int(left[number]))
        while left.any():
            paths = self._paths()
            for number in left.nonzero()[0].tolist():
                if paths.gpu_of[number] == _NOBODY:
                    full = (paths.job_of == _NOBODY) & (self.free == 0)
                    return Shut(job_classes=np.flatnonzero(paths.gpu_of == _NOBODY), gpu_classes=np.flatnonzero(full))
                while left[number] and (count := self._shift(number, int(left[number]), paths)):
                    left[number] -= count
        return None

    def _fill(self, number: int, count: int) -> int:
        """Place jobs of a class on free GPUs as they are; gives how many."""
        room = np.minimum(self.free, self._limits[number] - self.used[number])[self._scarce_first]
        able, room = self._scarce_first[room > 0], room[room > 0]
        put = np.minimum(room, np.maximum(count - (np.cumsum(room) - room), 0))
        self.used[number, able] += put
        self.free[able] -= put
        return int(put.sum())

    def _paths(self) -> _Paths:
        """Find the shortest way to a free GPU from everywhere, from the free GPUs backwards."""
        job_classes, gpu_classes = self.used.shape
        open_ = self.used < self._limits
        gpu_of = np.full(job_classes, _NOBODY, dtype=np.int64)
        job_of = np.full(gpu_classes, _NOBODY, dtype=np.int64)
        reached = self.free > 0
        newest = np.flatnonzero(reached)
        while len(newest):
            unreached = np.flatnonzero(gpu_of == _NOBODY)
            ways = open_[np.ix_(unreached, newest)]
            found = ways.any(axis=1)
            jobs = unreached[found]
            gpu_of[jobs] = newest[ways[found].argmax(axis=1)]
            left = np.flatnonzero(~reached)
            ways = self.used[np.ix_(jobs, left)] > 0
            found = ways.any(axis=0) if len(jobs) else np.zeros(len(left), dtype=np.bool_)
            newest = left[found]
            job_of[newest] = jobs[ways[:, found].argmax(axis=0)] if len(newest) else newest
            reached[newest] = True
        return _Paths(gpu_of=gpu_of, job_of=job_of)

    def _shift(self, number: int, count: int, paths: _Paths) -> int:
        """Place jobs of a class along its path, others making way; gives how many, 0 if the path is used up."""
        steps: list[tuple[int, int]] = []
        ways: list[tuple[int, int]] = []
        at = int(paths.gpu_of[number])
        job_class = number
        while True:
            steps.append((job_class, at))
            count = min(count, int(self._limits[job_class, at] - self.used[job_class, at]))
            if paths.job_of[at] == _NOBODY:
                break
            job_class = int(paths.job_of[at])
            ways.append((job_class, at))
            count = min(count, int(self.used[job_class, at]))
            at = int(paths.gpu_of[job_class])
        count = min(count, int(self.free[at]))
        for step in steps:
            self.used[step] += count
        for way in ways:
            self.used[way] -= count
        self.free[at] -= count
        return count
