"""Runs attempts as processes of this node: starts, watches, stops, adopts and forgets them, and tells what happened."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final

import msgspec
import structlog

from muxflow.attempts import directory_name
from muxflow.contracts import (
    Attempt,
    RunCheckpointed,
    RunEvent,
    RunEvicted,
    RunExited,
    RunStarted,
    Slot,
    StopCause,
    encode_token,
)
from muxflow_decisions.eviction import Step
from muxflow_decisions.node import LocalAttempt
from muxflow_executor import checkpoints, spare
from muxflow_executor.attempts import (
    AttemptDirectory,
    AttemptStore,
    Ended,
    ProcessRecord,
    Started,
    StopRequest,
)
from muxflow_executor.launch import Launcher, RunnerSettings, never_started
from muxflow_executor.protection import Protection, adopt
from muxflow_executor.recovery import recover
from muxflow_executor.run import Run, readable
from muxflow_executor.shim.records import boot_id, shorten
from muxflow_executor.stopping import Descent, clear_away

log = structlog.get_logger()

_RETRY_S: Final = 1.0
_CHECKPOINT_LOOK_S: Final = 1.0
_STARTED_LOOK_S: Final = 0.05


class ProcessRunner:
    """All attempts of one state directory. Their shims outlive it."""

    def __init__(
        self,
        store: AttemptStore,
        settings: RunnerSettings,
        *,
        protection: Protection | None = None,
        on_change: Callable[[], object],
        on_step: Callable[[Step], object],
        on_failure: Callable[[BaseException], object],
    ) -> None:
        self.facts: asyncio.Queue[RunEvent] = asyncio.Queue()
        """What is to be published, in order. Ids derive from the facts: after a restart some come again."""
        self.runs: dict[Attempt, Run] = {}
        self._store = store
        self._settings = settings
        self._protection = protection
        self._on_change = on_change
        self._on_step = on_step
        self._on_failure = on_failure
        self._launcher = Launcher(store, settings, protection)
        self._tasks: set[asyncio.Task[None]] = set()
        self._prefix = ""
        """Begins the ids of this node's facts; nobody else can guess it and publish under them before."""
        self._disk_complaint = ""

    @property
    def local(self) -> dict[Attempt, LocalAttempt]:
        """Every attempt that this node has a record of."""
        return {key: run.local for key, run in self.runs.items()}

    async def open(self) -> None:
        """Take over what an earlier process left, then be ready to start. Raises OSError."""
        await asyncio.to_thread(self._store.prepare)
        self._prefix = f"{await asyncio.to_thread(self._store.mark)}.{encode_token(self._settings.node)}"
        directories = await asyncio.to_thread(lambda: list(self._store.scan()))
        if self._protection is not None:
            live = await asyncio.to_thread(lambda: {found.key for found in directories if found.ended() is None})
            await asyncio.to_thread(self._protection.sweep, live)
        await asyncio.gather(*(self._adopt(directory) for directory in directories))
        await asyncio.to_thread(self._launcher.refill)
        self._spawn(self._watch_checkpoints())

    async def close(self) -> None:
        """Stop watching. Programs run on under their shims."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for run in self.runs.values():
            run.release()
            if run.job is not None:
                run.job.close()
                run.job = None
        self._launcher.close()

    def start(self, slot: Slot, gpu: str) -> None:
        """Begin to start an attempt: intent on disk, then the program. What is wrong with the job becomes its exit.

        When the disk does not take the intent nothing is started, and the attempt is unknown again.
        """
        if slot.key not in self.runs:
            run = self.runs[slot.key] = Run(slot.key, gpu)
            self._spawn(self._launch(run, slot))

    def stop(self, attempt: Attempt, cause: StopCause, reason: str = "", *, hard: bool = False) -> bool:
        """Begin to stop an attempt, step by step as `muxflow_decisions.eviction.ladder` says.

        False when it has ended or is being stopped already; another cause can then only make it quicker, and only a
        breach takes the place of the first.
        """
        run = self.runs.get(attempt)
        if run is None or run.ended is not None:
            return False
        request = StopRequest(cause=cause, reason=shorten(reason), hard=hard)
        if run.descent is not None:
            run.descent.tighten(request)
            return False
        self._stop(run, request, may_save=True)
        return True

    def decline(self, attempt: Attempt, gpu: str, cause: StopCause, reason: str) -> None:
        """Begin to record an attempt as ended that is never started, and report it so."""
        if attempt not in self.runs:
            run = self.runs[attempt] = Run(attempt, gpu)
            self._spawn(self._refuse(run, cause, reason))

    def mark_reported(self, attempt: Attempt) -> None:
        """The bus has acked the attempt's exit."""
        run = self.runs.get(attempt)
        if run is not None and not run.reported:
            run.reported = True
            self._spawn(self._write_reported(run))

    def forget(self, attempt: Attempt) -> None:
        """Begin to drop the record of an ended attempt; its output is kept for a while."""
        run = self.runs.get(attempt)
        if run is not None and run.ended is not None and not run.leaving:
            run.leaving = True
            self._spawn(self._forget(run))

    async def all_ended(self) -> None:
        """Wait until nothing of any attempt is left."""
        await asyncio.gather(*(run.over.wait() for run in self.runs.values()))

    # --- records

    async def _launch(self, run: Run, slot: Slot) -> None:
        try:
            launched = await asyncio.to_thread(self._launcher.launch, slot, run.gpu)
        except FileExistsError:
            self._seen_before(run)
        except OSError as error:
            await self._unknown_again(run, error)
        else:
            run.directory, run.job = launched.directory, launched.job
            if launched.shim is None:
                await self._take_over(run, launched.directory)
                return
            run.watch(launched.shim.pid)
            run.begun.set()
            await self._follow(run, launched.directory, launched.shim)

    async def _refuse(self, run: Run, cause: StopCause, reason: str) -> None:
        ended = msgspec.structs.replace(never_started(f"not started: {reason}"), stopped_by=cause)
        try:
            run.directory = await asyncio.to_thread(self._launcher.refuse, run.attempt, run.gpu, ended)
        except FileExistsError:
            self._seen_before(run)
        except OSError as error:
            await self._unknown_again(run, error)
        else:
            run.begun.set()
            self._end(run, ended)

    def _seen_before(self, run: Run) -> None:
        """An attempt that was forgotten is wanted again: it must not run twice, so it is answered for."""
        log.error("attempt has been here before; it is not started again", attempt=str(run.attempt))
        run.begun.set()
        self._end(run, Ended(lost=True, ended_ns=time.time_ns(), boot_id=boot_id()))

    async def _unknown_again(self, run: Run, error: OSError) -> None:
        if self._disk_complaint != str(error):
            log.error("cannot record an attempt, trying again", attempt=str(run.attempt), error=str(error))
        self._disk_complaint = str(error)
        await asyncio.sleep(_RETRY_S)
        del self.runs[run.attempt]
        run.begun.set()
        run.over.set()
        self._on_change()

    async def _write_reported(self, run: Run) -> None:
        try:
            if run.directory is not None:
                await asyncio.to_thread(run.directory.mark_reported)
        except OSError as error:  # it will be reported once more after a restart, which does no harm
            log.warning("cannot note that an exit is reported", attempt=str(run.attempt), error=str(error))
        self._on_change()

    async def _forget(self, run: Run) -> None:
        try:
            if run.directory is not None:
                await asyncio.to_thread(self._store.forget, run.directory)
        except OSError as error:
            log.warning("cannot forget an attempt", attempt=str(run.attempt), error=str(error))
            run.leaving = False
            return
        del self.runs[run.attempt]

    # --- watching

    async def _adopt(self, directory: AttemptDirectory) -> None:
        run = self.runs[directory.key] = Run(directory.key, directory.intent.gpu)
        run.directory, run.reported = directory, directory.reported
        if directory.ended() is None:
            run.job = await asyncio.to_thread(adopt, directory.intent)
        await self._take_over(run, directory)

    async def _take_over(self, run: Run, directory: AttemptDirectory) -> None:
        """Watch an attempt whose shim is not known here, or take in how it ended."""
        found = await self._recover(directory)
        while isinstance(found, ProcessRecord) and not run.watch(found.pid, found):
            found = await self._recover(directory)  # it ended after we looked
        run.begun.set()
        if isinstance(found, Ended):
            self._end(run, found)
            return
        log.info("adopted", attempt=str(run.attempt), shim=found.pid)
        self._spawn(self._follow(run, directory, None))
        request = directory.stop_request()
        if request is not None:
            self._stop(run, request, may_save=False)

    async def _follow(self, run: Run, directory: AttemptDirectory, shim: spare.Shim | None) -> None:
        """See the attempt through from its shim's start, or its adoption, to its end."""
        if shim is not None:
            await readable(shim.started_fd)
            os.close(shim.started_fd)
            self._spawn(asyncio.to_thread(self._launcher.refill))  # not before: it takes a core for some milliseconds
        else:
            await self._until_started(run, directory)
        run.started = directory.started()
        if run.started is not None:
            self._began(run, directory, run.started)
            if run.job is not None:
                self._spawn(clear_away(run, self._settings.ladder))
        await run.shim_ended()
        run.release()
        if shim is not None:
            _reap(shim.pid)
        ended = await self._recover(directory)
        while isinstance(ended, ProcessRecord):  # cannot be: the kernel told that it has ended
            await asyncio.sleep(_RETRY_S)
            ended = await self._recover(directory)
        self._end(run, ended)

    async def _until_started(self, run: Run, directory: AttemptDirectory) -> None:
        while not (directory.path / "started.json").exists():
            try:
                await asyncio.wait_for(run.shim_ended(), _STARTED_LOOK_S)
            except TimeoutError:
                continue
            return

    def _began(self, run: Run, directory: AttemptDirectory, started: Started) -> None:
        intent = directory.intent
        if intent.checkpoint is not None and intent.checkpoint.every_s is not None:
            run.ask_at = time.monotonic() + intent.checkpoint.every_s
        self._tell(run, RunStarted, "started", purpose=intent.purpose, pid=started.pid, boot_id=started.boot_id)
        self._on_change()

    async def _recover(self, directory: AttemptDirectory) -> ProcessRecord | Ended:
        """`recover`, until the disk takes the result."""
        complained = False
        while True:
            try:
                return await asyncio.to_thread(recover, directory)
            except OSError as error:
                if not complained:
                    log.error("cannot record an exit, trying again", attempt=str(directory.key), error=str(error))  # noqa: TRY400
                complained = True
                await asyncio.sleep(_RETRY_S)

    def _end(self, run: Run, ended: Ended) -> None:
        run.ended = ended = _explained(run, ended)
        run.over.set()
        if run.job is not None:
            run.job.remove()
            run.job = None
        elif self._protection is not None:  # it ended while it was taken over, or its pages could not be
            self._protection.drop(run.attempt)
        if not run.reported:
            self._tell(
                run, RunExited, "exited", exit=ended.status, started_ns=ended.started_ns, ended_ns=ended.ended_ns
            )
        log.info("ended", attempt=str(run.attempt), how=ended.describe())
        self._on_change()

    def _tell(self, run: Run, kind: type[RunEvent], fact: str, **fields: Any) -> None:
        attempt = run.attempt
        run_id = run.directory.intent.run_id if run.directory is not None else ""
        self.facts.put_nowait(
            kind(
                id=f"{self._prefix}.{directory_name(attempt)}.{run_id}.{fact}",
                node=self._settings.node,
                gpu=run.gpu,
                tenant=attempt.tenant,
                job=attempt.job,
                attempt=attempt.attempt,
                **fields,
            )
        )

    # --- stopping

    def _stop(self, run: Run, request: StopRequest, *, may_save: bool) -> None:
        run.descent = Descent(
            run,
            request,
            policy=self._settings.ladder,
            on_step=self._on_step,
            on_begun=lambda: self._tell(run, RunEvicted, "evicted", cause=request.cause, reason=request.reason),
            on_saved=lambda saved_ns, asked_ns: self._saved(run, saved_ns, asked_ns),
        )
        self._spawn(run.descent.go(may_save=may_save))

    # --- checkpoints while it runs

    async def _watch_checkpoints(self) -> None:
        while True:
            await asyncio.sleep(_CHECKPOINT_LOOK_S)
            for run in self.runs.values():
                if run.directory is not None and run.started is not None and run.ended is None and run.descent is None:
                    self._look_for_checkpoint(run, run.directory, run.started)

    def _look_for_checkpoint(self, run: Run, directory: AttemptDirectory, program: Started) -> None:
        saved_ns = checkpoints.saved_ns(directory.checkpoint_mark)
        if saved_ns > run.saved_ns:
            self._saved(run, saved_ns, run.asked_ns)
        checkpoint = directory.intent.checkpoint
        if checkpoint is None or checkpoint.every_s is None or time.monotonic() < run.ask_at:
            return
        run.ask_at = time.monotonic() + checkpoint.every_s
        if checkpoints.ask(checkpoint, program):
            run.asked_ns = time.time_ns()

    def _saved(self, run: Run, saved_ns: int, asked_ns: int) -> None:
        run.saved_ns, run.asked_ns = saved_ns, 0
        self._tell(run, RunCheckpointed, f"checkpointed.{saved_ns}", asked_ns=asked_ns)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._on_failure(error)  # an attempt that nobody watches any more would wait for ever


def _explained(run: Run, ended: Ended) -> Ended:
    """Add to how the program ended, as its shim saw it, why: what was wanted of it, and what its GPU told it.

    The shim keeps to the first cause that it hears of; a breach that is found later counts for more.
    """
    stop = run.directory.stop_request() if run.directory is not None and ended.stopped_by is not None else None
    breach = stop is not None and stop.cause is StopCause.BREACH
    return msgspec.structs.replace(
        ended,
        stopped_by=StopCause.BREACH if breach else ended.stopped_by,
        stop_reason=(stop.reason or None) if stop is not None else None,
        gpu_error=run.job.gpu_error() if run.job is not None else None,
        refused_bytes=run.job.refused_bytes() if run.job is not None else None,
    )


def _reap(pid: int) -> None:
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)
