"""One connection of somebody who submits jobs or looks after them."""

from __future__ import annotations

import asyncio
import getpass
import socket
import time
import uuid
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import urlsplit

import msgspec

from muxflow.bus import Bus, Disconnected, Forbidden, Message, NoResponders, QueryError, RequestTimeout
from muxflow.client import dead_letters, devices, event_feed, profiles
from muxflow.client.dead_letters import DeadEntry
from muxflow.client.errors import AlreadyEnded, ClientError, NoAnswer, NotAllowed, NotConnected, NotFound
from muxflow.client.event_feed import Received
from muxflow.client.handle import JobHandle
from muxflow.client.job_output import OutputReader
from muxflow.client.profiles import Profiles
from muxflow.contracts import (
    ALL_TENANTS,
    DeviceRequest,
    DevicesQuery,
    DevicesReply,
    DeviceSummary,
    Event,
    EvictRequest,
    JobCancel,
    JobQuery,
    JobReply,
    JobSpec,
    JobsQuery,
    JobsReply,
    JobState,
    JobSubmit,
    LogsQuery,
    LogsReply,
    NodesQuery,
    NodesReply,
    NodeSummary,
    PredictQuery,
    PredictReply,
    QueueQuery,
    QueueReply,
    Role,
    Subject,
)
from muxflow.contracts.catalogue import (
    DEAD,
    JOBS_ACCEPTED,
    JOBS_CANCEL,
    JOBS_CANCELLED,
    JOBS_FAILED,
    JOBS_FINISHED,
    JOBS_REJECTED,
    JOBS_SUBMIT,
    PROFILES_OFFLINE,
    QUERY_DEVICES,
    QUERY_JOB,
    QUERY_JOBS,
    QUERY_LOGS,
    QUERY_NODES,
    QUERY_PREDICT,
    QUERY_QUEUE,
    REQUESTS_DEVICE,
    REQUESTS_EVICT,
    subject_of,
)
from muxflow.discovery import Access, DiscoveryError, find
from muxflow.settings import SettingsError

DEFAULT_TENANT: Final = "default"

_OUTCOMES: Final = (JOBS_ACCEPTED, JOBS_REJECTED, JOBS_FINISHED, JOBS_FAILED, JOBS_CANCELLED)
_ANSWER_S: Final = 5.0
_AGAIN_S: Final = 0.1


class Client:
    """Made by `connect`, used with ``async with``.

    Jobs are named ``name`` (in the client's tenant) or ``tenant/name``. Besides what each method says, all of them
    raise `NotConnected`, `NotAllowed` when the credentials' role may not do this, and `NoAnswer` when the service that
    should answer does not.
    """

    def __init__(self, access: Access, *, tenant: str | None, timeout_s: float) -> None:
        self.role = access.role
        """Whose credentials these are; None when that is not known."""
        self._access = access
        self._tenant = tenant or access.tenant
        self._timeout_s = timeout_s
        self._bus: Bus | None = None
        self._watched: set[str] = set()
        self._handles: dict[tuple[str, str], weakref.WeakSet[JobHandle]] = {}

    @classmethod
    def connect(
        cls,
        *,
        server: str | None = None,
        credentials: Path | None = None,
        state_dir: Path | None = None,
        tenant: str | None = None,
        timeout_s: float = 3.0,
    ) -> Self:
        """Find server and credentials (see `muxflow.discovery.find`); ``async with`` connects.

        Once connected, a lost connection is made again for ever; only the first one must succeed within `timeout_s`.
        Raises `NotConnected`.
        """
        try:
            access = find(server=server, credentials=credentials, directory=state_dir)
        except (DiscoveryError, SettingsError) as error:
            raise NotConnected(str(error)) from None
        return cls(access, tenant=tenant, timeout_s=timeout_s)

    async def __aenter__(self) -> Self:
        await _probe(self._access.bus.servers, self._timeout_s)
        connecting = Bus.connect(self._access.bus, source=f"{_user()}@{socket.gethostname()}")
        try:
            self._bus = await asyncio.wait_for(connecting, self._timeout_s)
        except TimeoutError:
            server, seed = self._access.bus.servers[0], self._access.bus.credentials
            whose = f"the credentials in {seed}" if seed else "a client without credentials"
            raise NotConnected(f"{server} did not let in {whose} within {self._timeout_s:g} s") from None
        except (OSError, ValueError) as error:
            raise NotConnected(f"{self._access.bus.servers[0]}: {error}") from None
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.bus.close()

    @property
    def bus(self) -> Bus:
        """The bus below, for what the client does not offer."""
        if self._bus is None:
            raise NotConnected("the client is used outside of `async with`")
        return self._bus

    # Jobs

    async def submit(self, spec: JobSpec) -> JobHandle:
        """Submit a job; returns when JetStream has stored it: it will not be lost.

        Whether it is valid, the scheduler says: `JobHandle.accepted`.
        """
        tenant = spec.tenant or self._tenant or DEFAULT_TENANT
        spec = msgspec.structs.replace(spec, tenant=tenant)
        event = JobSubmit(id=uuid.uuid4().hex, spec=spec)
        handle = await self._watch(tenant, spec.name, submission_id=event.id, spec=spec)
        with self._using(JOBS_SUBMIT):
            await self.bus.publish(JOBS_SUBMIT, event, tenant=tenant, job=spec.name)
        return handle

    async def already_there(self, spec: JobSpec) -> JobReply | None:
        """Ask about the very job that `submit` would hand in; None if its name is free, or another job has it.

        Submitting a job that is there changes nothing: its name is used up until it is purged.
        """
        tenant = spec.tenant or self._tenant or DEFAULT_TENANT
        try:
            reply = await self.job(f"{tenant}/{spec.name}")
        except NotFound:
            return None
        return reply if reply.record.spec == msgspec.structs.replace(spec, tenant=tenant) else None

    async def cancel(self, job: str, *, reason: str = "") -> JobHandle:
        """Ask to stop a job for good; returns when JetStream has stored that. Raises `NotFound`, `AlreadyEnded`."""
        tenant, name = self.locate(job)
        state = (await self.job(job)).record.state
        if state in (JobState.FINISHED, JobState.FAILED):
            raise AlreadyEnded(f"{tenant}/{name} has already {state.value}")
        event = JobCancel(id=uuid.uuid4().hex, reason=reason)
        handle = await self._watch(tenant, name, submission_id=event.id)
        with self._using(JOBS_CANCEL):
            await self.bus.publish(JOBS_CANCEL, event, tenant=tenant, job=name)
        return handle

    async def watch(self, job: str) -> JobHandle:
        """Get hold of a job that somebody submitted. Raises `NotFound`."""
        await self.job(job)
        return await self._watch(*self.locate(job))

    async def jobs(self, *, states: tuple[JobState, ...] = (), limit: int = 100) -> JobsReply:
        """List jobs, newest first: of the client's tenant; of all for operators that have none."""
        tenant = self._tenant or (ALL_TENANTS if self.role is Role.OPERATOR else DEFAULT_TENANT)
        query = JobsQuery(states=states, limit=limit)
        reply: JobsReply = await self._ask(QUERY_JOBS, query, tenant)
        return reply

    async def job(self, job: str) -> JobReply:
        """Everything about one job. Raises `NotFound`."""
        tenant, name = self.locate(job)
        query = JobQuery(job=name)
        reply: JobReply = await self._ask(QUERY_JOB, query, tenant)
        return reply

    async def queue(self, *, limit: int = 100) -> QueueReply:
        """List waiting jobs, the next one first: of the client's tenant; of all for operators that have none.

        Those are told of the newest matchings too.
        """
        tenant = self._tenant or (ALL_TENANTS if self.role is Role.OPERATOR else DEFAULT_TENANT)
        reply: QueueReply = await self._ask(QUERY_QUEUE, QueueQuery(limit=limit), tenant)
        return reply

    def logs(
        self, job: str, *, attempt: int | None = None, follow: bool = False, notice: Callable[[str], None] | None = None
    ) -> AsyncIterator[LogsReply]:
        """Read a job's output in pieces, from the oldest byte that its node has kept; of the newest attempt by default.

        With `follow` it waits until there is some, goes on to the next attempts, and outlasts restarts of whoever
        answers, until the job has ended; a given `attempt` is followed to its own end. `notice` is told, in lines for
        people, why there is nothing to read. Raises `NotFound`.
        """
        tenant, name = self.locate(job)

        async def read(node: str, query: LogsQuery) -> LogsReply:
            with self._using(QUERY_LOGS, f"executor of node {node}"):
                reply: LogsReply = await self.bus.request(
                    QUERY_LOGS, query, timeout_s=_ANSWER_S, tenant=tenant, node=node
                )
            return reply

        def ask() -> Awaitable[JobReply]:
            return self.job(f"{tenant}/{name}")

        reader = OutputReader(tenant, name, ask=ask, read=read, notice=notice or (lambda _: None))
        return reader.followed(attempt) if follow else reader.kept(attempt)

    def locate(self, job: str) -> tuple[str, str]:
        """Split ``tenant/name``; the tenant defaults to the client's."""
        tenant, separator, name = job.rpartition("/")
        if not name or (separator and not tenant):
            raise NotFound(f"{job!r} is no name of a job; write NAME or TENANT/NAME")
        return tenant or self._tenant or DEFAULT_TENANT, name

    # Nodes and what happens

    async def nodes(self) -> tuple[NodeSummary, ...]:
        """List nodes and what is on their GPUs. For operators and observers."""
        reply: NodesReply = await self._ask(QUERY_NODES, NodesQuery(), ALL_TENANTS)
        return reply.nodes

    async def devices(self, *, newest: bool = True) -> tuple[DeviceSummary, ...]:
        """List GPUs with the state of their offline side and who is on them. For operators and observers.

        With the `newest` readings that monitors told, of the last minutes; else with those of the last change of state.
        """
        reply: DevicesReply = await self._ask(QUERY_DEVICES, DevicesQuery(), ALL_TENANTS)
        with self._using(QUERY_DEVICES):
            readings = await devices.newest_readings(self.bus) if newest else {}
        return devices.up_to_date(reply.devices, readings)

    async def disable(self, node: str, gpu: str, *, reason: str = "") -> None:
        """Forbid offline work on a GPU until it is enabled again. For operators.

        Returns when the wish is stored; the node's monitor carries it out, and tells so by the device's state.
        """
        await self._wish(DeviceRequest(node=node, gpu=gpu, enabled=False, reason=reason))

    async def enable(self, node: str, gpu: str, *, reason: str = "") -> None:
        """Allow offline work on a GPU again; see `disable`. For operators."""
        await self._wish(DeviceRequest(node=node, gpu=gpu, enabled=True, reason=reason))

    async def _wish(self, request: DeviceRequest) -> None:
        with self._using(REQUESTS_DEVICE):
            await self.bus.publish(REQUESTS_DEVICE, request, node=request.node, gpu=request.gpu)

    async def evict(
        self, node: str, gpu: str, *, job: str | None = None, tenant: str | None = None, reason: str = ""
    ) -> None:
        """Ask the scheduler to take offline work off a GPU: one job's, or all of it. For operators."""
        event = EvictRequest(node=node, gpu=gpu, tenant=tenant, job=job, reason=reason)
        with self._using(REQUESTS_EVICT):
            await self.bus.publish(REQUESTS_EVICT, event, node=node, gpu=gpu)

    async def predict(self, spec: JobSpec, *, gpu_kind: str) -> PredictReply:
        """Tell how fast a job would be on a kind of GPU, alone and beside each online service there.

        A spec without a tenant is one of the client's.
        """
        tenant = spec.tenant or self._tenant or DEFAULT_TENANT
        key = msgspec.structs.replace(spec, tenant=tenant).measured_as
        query = PredictQuery(key=key, memory_bytes=spec.gpu.memory_bytes, gpu_kind=gpu_kind)
        with self._using(QUERY_PREDICT, "predictor"):
            reply: PredictReply = await self.bus.request(QUERY_PREDICT, query, timeout_s=_ANSWER_S, tenant=tenant)
        return reply

    def events(
        self, subject: str = "", *, since_s: float | None = None, follow: bool = True
    ) -> AsyncIterator[Received]:
        """Read events, oldest first.

        `subject` is the beginning of a subject, such as ``jobs`` or ``runs.exited``; empty means all that the role may
        read. `since_s` begins that many seconds ago, which takes an operator or observer; None begins now. With
        `follow` it never ends.
        """
        return event_feed.read(
            self.bus, event_feed.select(subject, self.role), self._tenant, since_s=since_s, follow=follow
        )

    def alerts(self, *, since_s: float | None = None, follow: bool = True) -> AsyncIterator[Received]:
        """Read alerts, oldest first; see `events`. For operators and observers."""
        return self.events("alerts", since_s=since_s, follow=follow)

    async def profiles(self) -> Profiles:
        """List what was measured: jobs alone, services, jobs beside services. For operators and observers."""
        self._check(PROFILES_OFFLINE, PROFILES_OFFLINE.readers)
        return await profiles.read_all(self.bus)

    # Dead letters

    async def dead_letters(self) -> tuple[DeadEntry, ...]:
        """List what no service could handle, oldest first. For operators."""
        self._check(DEAD, DEAD.readers)
        return await dead_letters.read_all(self.bus)

    async def dead_letter(self, number: int) -> DeadEntry:
        """Give one dead letter. Raises `NotFound`. For operators."""
        self._check(DEAD, DEAD.readers)
        return await dead_letters.read_one(self.bus, number)

    async def replay(self, number: int) -> DeadEntry:
        """Send a dead letter's message again to where it came from. Raises `NotFound`. For operators."""
        entry = await self.dead_letter(number)
        subject = subject_of(entry.letter.subject)
        if subject is None:
            raise ClientError(f"dead letter {number} cannot be sent again: its message is gone, or was no event")
        with self._using(subject):
            await dead_letters.send_again(self.bus, entry)
        return entry

    async def _watch(
        self, tenant: str, name: str, *, submission_id: str | None = None, spec: JobSpec | None = None
    ) -> JobHandle:
        """Make a handle that learns from live events; they are subscribed to once for each tenant."""
        if tenant not in self._watched:
            self._watched.add(tenant)
            for subject in _OUTCOMES:
                await self.bus.subscribe(subject, self._dispatch, bindings={"tenant": tenant})

        def ask() -> Any:
            return self.job(f"{tenant}/{name}")

        handle = JobHandle(tenant, name, ask=ask, submission_id=submission_id, spec=spec)
        self._handles.setdefault((tenant, name), weakref.WeakSet()).add(handle)
        return handle

    def _dispatch(self, message: Message[Any]) -> None:
        key = (message.names["tenant"], message.names["job"])
        handles = self._handles.get(key, ())
        for handle in tuple(handles):
            handle.take(message.event)
        if not handles:
            self._handles.pop(key, None)

    async def _ask(self, subject: Subject, query: Event, tenant: str) -> Any:
        """Ask the scheduler. While none leads, as for some seconds when the lead changes, ask again."""
        deadline_s = time.monotonic() + _ANSWER_S
        with self._using(subject, "scheduler"):
            while True:
                try:
                    return await self.bus.request(subject, query, timeout_s=_ANSWER_S, tenant=tenant)
                except NoResponders:
                    if time.monotonic() >= deadline_s:
                        raise
                    await asyncio.sleep(_AGAIN_S)

    @contextmanager
    def _using(self, subject: Subject, answerer: str = "server") -> Iterator[None]:
        """Check that the role may, and turn what the bus raises into what a client is told."""
        self._check(subject, subject.publishers)
        try:
            yield
        except Forbidden as error:
            raise self._not_allowed(str(error)) from None
        except QueryError as error:
            raise (NotFound(error.text) if error.code == HTTPStatus.NOT_FOUND else NoAnswer(str(error))) from None
        except (NoResponders, RequestTimeout) as error:
            raise NoAnswer(f"the {answerer} does not answer: {error}") from None
        except Disconnected as error:
            raise NotConnected(str(error)) from None

    def _check(self, subject: Subject, allowed: tuple[Role, ...]) -> None:
        if self.role is not None and self.role not in allowed:
            raise self._not_allowed(subject.name)

    def _not_allowed(self, what: str) -> NotAllowed:
        role = f"of role {self.role.value}" if self.role else "in use"
        bound = f" of tenant {self._access.tenant}" if self._access.tenant else ""
        return NotAllowed(f"the credentials {role}{bound} do not allow this: {what}; use an operator's")


async def _probe(servers: tuple[str, ...], timeout_s: float) -> None:
    """Fail at once, and say why, when nobody listens at all: the bus itself would try for ever."""
    reasons = []
    for server in servers:
        address = urlsplit(server if "://" in server else f"nats://{server}")
        try:
            async with asyncio.timeout(timeout_s):
                _, writer = await asyncio.open_connection(address.hostname, address.port or 4222)
        except TimeoutError:
            reasons.append(f"{server}: no answer within {timeout_s:g} s")
        except ConnectionRefusedError:
            reasons.append(f"{server}: nobody listens there")
        except (OSError, ValueError) as error:
            reasons.append(f"{server}: {getattr(error, 'strerror', None) or error}")
        else:
            writer.close()
            return
    raise NotConnected(f"{'; '.join(reasons)}; is `muxflow up` running?")


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # no name for this uid
        return "client"
