"""One attempt on its way down: carries out what `muxflow_decisions.eviction.ladder` decides, and lets others follow."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncGenerator, Callable
from typing import Final, NamedTuple

import structlog

from muxflow.contracts import StopCause
from muxflow_decisions.eviction import LadderPolicy, Step, ladder
from muxflow_executor import checkpoints
from muxflow_executor.attempts import AttemptDirectory, StopRequest
from muxflow_executor.processes import alive, below_shim, handles, send, signal_number
from muxflow_executor.run import Run, program_ended

log = structlog.get_logger()

_LOOK_S: Final = 0.01
_RECORD_S: Final = 1.0
"""How long the first step that can end the program waits for the disk to take the reason: without it the shim cannot
say why it ended."""
_HUNG_S: Final = 10.0
"""A shim that was told to kill and is still there after this is killed itself."""


class Passed(NamedTuple):
    """A step that a stop has come to."""

    step: Step
    time_ns: int


class Descent:
    """A stop from its beginning to the end of the attempt."""

    def __init__(
        self,
        run: Run,
        request: StopRequest,
        *,
        policy: LadderPolicy,
        on_step: Callable[[Step], object],
        on_begun: Callable[[], object],
        on_saved: Callable[[int, int], object],
    ) -> None:
        self.passed: list[Passed] = []
        self._run = run
        self._requests = [request]
        self._policy = policy
        self._on_step = on_step
        self._on_begun = on_begun
        self._on_saved = on_saved
        self._stop = ladder.Stop()
        self._recording: asyncio.Task[None] | None = None
        self._disconnecting: asyncio.Task[None] | None = None
        self._asked = False
        self._asked_ns = 0
        self._saved_before_ns = 0
        self._killing_since: float | None = None
        self._news = asyncio.Event()

    async def go(self, *, may_save: bool) -> None:
        """Take it down; returns when nothing of it is left."""
        await self._run.begun.wait()
        directory = self._run.directory
        if directory is None or self._run.ended is not None:
            self._tell(Step.ENDED, "there is nothing to stop")
            return
        try:
            while not self._run.over.is_set():
                await self._look(directory, may_save=may_save)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._run.over.wait(), _LOOK_S)
            await self._take(ladder.Exited(), directory)
        finally:
            for task in (self._recording, self._disconnecting):
                if task is not None:
                    task.cancel()

    def tighten(self, request: StopRequest) -> None:
        """Take in that somebody else wants it stopped too: it can only become quicker. A breach becomes its cause."""
        self._requests.append(request)

    async def follow(self) -> AsyncGenerator[Passed, None]:
        """Give the steps, from the first one to the last."""
        told = 0
        while True:
            news = self._news
            while told < len(self.passed):
                told += 1
                yield self.passed[told - 1]
            if self.passed and self.passed[-1].step is Step.ENDED:
                return
            await news.wait()

    async def _look(self, directory: AttemptDirectory, *, may_save: bool) -> None:
        """Give the ladder what has happened since the last look."""
        while self._requests:
            request = self._requests.pop(0)
            if self._recording is None or request.cause is StopCause.BREACH:
                # Beside the ladder: a disk that is slow does not keep the gate open.
                self._recording = asyncio.create_task(self._record(directory, request, self._recording))
            await self._take(self._begin(directory, request, may_save=may_save), directory)
        if self._stop.step is Step.CHECKPOINT:
            await self._look_for_checkpoint(directory)
        if self._run.job is not None and not self._stop.drained and self._run.job.drained():
            await self._take(ladder.Drained(), directory)
        if self._disconnecting is not None and self._disconnecting.done():
            await self._take(ladder.Disconnected(), directory)
        await self._take(ladder.Clock(), directory)

    async def _look_for_checkpoint(self, directory: AttemptDirectory) -> None:
        saved_ns = checkpoints.saved_ns(directory.checkpoint_mark)
        if not self._asked:
            await self._take(ladder.NotAsked(), directory)
        elif saved_ns > self._saved_before_ns:
            self._on_saved(saved_ns, self._asked_ns)
            await self._take(ladder.Checkpointed(), directory)

    def _begin(self, directory: AttemptDirectory, request: StopRequest, *, may_save: bool) -> ladder.Begin:
        order, program = directory.intent.order, self._run.started
        checkpoint = directory.intent.checkpoint if may_save else None
        return ladder.Begin(
            cause=request.cause,
            hard=request.hard,
            has_checkpoint=checkpoint is not None,
            handles_signal=checkpoint is not None
            and program is not None
            and handles(program.pid, signal_number(checkpoint.signal)),
            checkpoint_grace_s=checkpoint.grace_s if checkpoint is not None else 0.0,
            stop_grace_s=order.stop_grace_s if order is not None else 0.0,
        )

    async def _take(self, stimulus: ladder.LadderStimulus, directory: AttemptDirectory) -> None:
        outcome = ladder.advance(self._stop, stimulus, now_ns=time.monotonic_ns(), policy=self._policy)
        self._stop = outcome.stop
        for instruction in outcome.instructions:
            await self._do(instruction, directory)

    async def _do(self, instruction: ladder.LadderInstruction, directory: AttemptDirectory) -> None:
        match instruction:
            case ladder.SetJobGate(gate=gate, phase=phase, deadline_ns=deadline_ns):
                if self._run.job is not None:
                    self._run.job.set_gate(gate, phase, deadline_ns)
            case ladder.Tell(step=step, detail=detail):
                self._tell(step, detail)
            case ladder.AskCheckpoint():
                await self._recorded()
                self._ask(directory)
            case ladder.Terminate():
                await self._recorded()
                self._run.send(signal.SIGTERM)
                self._run.send(signal.SIGCONT)
            case ladder.TerminateClient():
                await self._recorded()
                self._disconnecting = asyncio.create_task(_disconnect(self._run))
            case ladder.Kill():
                self._kill(directory)

    def _tell(self, step: Step, detail: str) -> None:
        log.info("stop", attempt=str(self._run.attempt), step=step.value, detail=detail)
        self._on_step(step)
        self.passed.append(Passed(step, time.time_ns()))
        self._news.set()
        self._news = asyncio.Event()

    def _ask(self, directory: AttemptDirectory) -> None:
        checkpoint, program = directory.intent.checkpoint, self._run.started
        self._saved_before_ns, self._asked_ns = checkpoints.saved_ns(directory.checkpoint_mark), time.time_ns()
        self._asked = checkpoint is not None and program is not None and checkpoints.ask(checkpoint, program)

    def _kill(self, directory: AttemptDirectory) -> None:
        """Have the shim kill everything below it; when it does not, kill it as well."""
        self._run.send(signal.SIGUSR1)
        self._run.send(signal.SIGCONT)
        now = time.monotonic()
        if self._killing_since is None:
            self._killing_since = now
        program = directory.started()
        if now - self._killing_since < _HUNG_S or (program is not None and not alive(program)):
            return  # in the second case it only waits for the disk to take the exit
        log.error("the shim does not kill its program; killing both", attempt=str(self._run.attempt))
        self._run.send(signal.SIGKILL)
        if program is not None:
            send(program, signal.SIGKILL)

    async def _record(
        self, directory: AttemptDirectory, request: StopRequest, earlier: asyncio.Task[None] | None
    ) -> None:
        if earlier is not None:
            await earlier
        try:
            await asyncio.to_thread(directory.request_stop, request)
        except OSError as error:
            log.error("cannot record why it stops", attempt=str(self._run.attempt), error=str(error))  # noqa: TRY400
        if earlier is None:
            self._on_begun()

    async def _recorded(self) -> None:
        if self._recording is not None:
            await asyncio.wait({self._recording}, timeout=_RECORD_S)


async def clear_away(run: Run, policy: LadderPolicy) -> None:
    """See that what a program leaves behind when it ends is killed, and that this hurts nobody on the GPU.

    The shim has asked it to end, and waits for our word to kill it.
    """
    program, job = run.started, run.job
    if program is None or job is None:
        return
    if alive(program):
        await program_ended(program.pid)
    if run.shim_pid is None or not await asyncio.to_thread(below_shim, run.shim_pid) or run.over.is_set():
        return
    job.stop_at_once()
    until = time.monotonic() + policy.hard_grace_s
    while not run.over.is_set() and job.in_flight() and time.monotonic() < until:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(run.over.wait(), _LOOK_S)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(_disconnect(run), policy.disconnect_s)
    run.send(signal.SIGUSR1)


async def _disconnect(run: Run) -> None:
    """Have MPS let go of every process of the attempt. What its job page says is not asked: it could name others."""
    if run.job is not None and run.job.shared and run.shim_pid is not None:
        await run.job.disconnect(await asyncio.to_thread(below_shim, run.shim_pid))
