"""Two jobs in a small world where everything that may go wrong does: nodes lose leases, reboot and forget, exits are
never seen, facts come late, twice and in any order, the scheduler crashes between a commit and what follows from it.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from muxflow.contracts import (
    Attempt,
    ExitStatus,
    GpuDecision,
    GpuRequest,
    JobRecord,
    JobSpec,
    JobState,
    Placement,
    Purpose,
    RunCheckpointed,
    RunEvent,
    RunEvicted,
    RunExited,
    RunStarted,
    StopCause,
)
from muxflow_decisions.lifecycle import (
    Announce,
    Assign,
    Cancel,
    Decide,
    Instruction,
    NodeLost,
    Note,
    ProfileDone,
    ProfileGivenUp,
    RetryPolicy,
    Stimulus,
    Submit,
    Withdraw,
    advance,
    decide,
    submit,
    terminal_event,
    validate,
)
from muxflow_decisions.node import Decline, Forget, LocalAttempt, LocalState, Start, Stop, newer, reconcile

JOBS = ("a", "b")
NODES = ("north", "south")
GPU = "0"
POLICY = RetryPolicy(max_losses=6)
SECOND = 1_000_000_000

pick = st.integers(0, 11)
jobs = st.sampled_from(JOBS)
nodes = st.sampled_from(NODES)


class Node:
    """A node whose executor does what `reconcile` says and whose programs do what they like."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.sessions = 1
        self.session: str | None = f"{name}-1"
        self.draining = False
        self.local: dict[Attempt, LocalAttempt] = {}
        self.causes: dict[Attempt, StopCause] = {}
        self.read: GpuDecision | None = None
        self.begun: set[Attempt] = set()
        self.outbox: list[RunEvent] = []
        self.succeeded: set[Attempt] = set()

    def live(self) -> list[Attempt]:
        return [attempt for attempt, found in self.local.items() if found.state is not LocalState.ENDED]

    def act(self, now_ns: int) -> None:
        for instruction in reconcile({GPU: self.read}, self.local, session=self.session, draining=self.draining):
            match instruction:
                case Start(gpu=gpu, slot=slot):
                    assert slot.key not in self.begun
                    assert self.session is not None
                    self.begun.add(slot.key)
                    self.local[slot.key] = LocalAttempt(state=LocalState.STARTING, gpu=gpu)
                case Stop(attempt=attempt, cause=cause):
                    self.set(attempt, LocalState.STOPPING)
                    self.causes[attempt] = cause
                    self.tell(RunEvicted, attempt, now_ns, cause=cause)
                case Decline(attempt=attempt, gpu=gpu, cause=cause):
                    self.local[attempt] = LocalAttempt(state=LocalState.STARTING, gpu=gpu)
                    self.causes[attempt] = cause
                    self.end(attempt, ExitStatus(error="never started", stopped_by=cause), now_ns)
                case Forget(attempt=attempt):
                    assert self.local[attempt].reported
                    del self.local[attempt]

    def set(self, attempt: Attempt, state: LocalState) -> None:
        self.local[attempt] = msgspec.structs.replace(self.local[attempt], state=state)

    def end(self, attempt: Attempt, status: ExitStatus, now_ns: int) -> None:
        self.set(attempt, LocalState.ENDED)
        if status.succeeded:
            self.succeeded.add(attempt)
        self.tell(RunExited, attempt, now_ns, exit=status, ended_ns=now_ns)

    def tell(self, kind: type[RunEvent], attempt: Attempt, now_ns: int, **fields: Any) -> None:
        fact = kind(
            node=self.name,
            gpu=self.local[attempt].gpu,
            tenant=attempt.tenant,
            job=attempt.job,
            attempt=attempt.attempt,
            time_ns=now_ns,
            **fields,
        )
        self.outbox.append(fact)

    def publish(self) -> list[RunEvent]:
        told, self.outbox = self.outbox, []
        for fact in told:
            attempt = Attempt(tenant=fact.tenant, job=fact.job, attempt=fact.attempt)
            if isinstance(fact, RunExited) and attempt in self.local:
                self.local[attempt] = msgspec.structs.replace(self.local[attempt], reported=True)
        return told


class World(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now_ns = 1_000 * SECOND
        self.nodes = {name: Node(name) for name in NODES}
        self.sessions_seen: dict[str, str | None] = {name: self.nodes[name].session for name in NODES}
        self.records: dict[str, JobRecord] = {}
        self.todo: list[Instruction] = []
        self.decisions: dict[str, list[GpuDecision]] = {name: [] for name in NODES}
        self.term = 1
        self.generation = 0
        self.stream: list[RunEvent] = []
        self.undelivered: list[RunEvent] = []
        self.first_announced: dict[str, msgspec.Struct] = {}
        self.announced: Counter[str] = Counter()
        self.cancelled: set[str] = set()
        for job in JOBS:
            spec = JobSpec(name=job, tenant="t", command=("run",), gpu=GpuRequest(memory_bytes=1), retries=6)
            outcome = submit(spec, submission_id=f"s-{job}", submitted_ns=self.now_ns, now_ns=self.now_ns)
            self.records[job] = outcome.record

    # ------------------------------------------------------------ the scheduler

    def step(self, job: str, stimulus: Stimulus) -> None:
        self.now_ns += SECOND
        before = self.records[job]
        outcome = advance(before, stimulus, now_ns=self.now_ns, policy=POLICY)
        if any(isinstance(instruction, Note) for instruction in outcome.instructions):
            assert outcome.record is before
        assert before.attempt <= outcome.record.attempt <= before.attempt + 1
        for instruction in outcome.instructions:
            if isinstance(instruction, Announce) and instruction.event.id.endswith(".terminal"):
                self.announced[job] += 1
                self.first_announced[job] = instruction.event
        self.records[job] = outcome.record
        self.todo += outcome.instructions

    def publish_decision(self, node: str) -> None:
        self.generation += 1
        self.decisions[node].append(
            decide(
                self.records.values(),
                node=node,
                gpu=GPU,
                session=self.sessions_seen[node] or "",
                term=self.term,
                generation=self.generation,
                cause="test",
            )
        )

    def lose(self, node: str) -> None:
        """Tell every job of every session of the node that is over, as often as it is noticed."""
        for number in range(1, self.nodes[node].sessions + 1):
            session = f"{node}-{number}"
            for job in JOBS if session != self.sessions_seen[node] else ():
                self.step(job, NodeLost(node=node, session=session))

    @rule(job=jobs, node=nodes, purpose=st.sampled_from(Purpose))
    def place(self, job: str, node: str, purpose: Purpose) -> None:
        session = self.sessions_seen[node]
        held = {record.placement.node for record in self.records.values() if record.placement}
        if session is not None and node not in held:
            self.step(job, Assign(placement=Placement(node=node, gpu=GPU, session=session, purpose=purpose)))

    @precondition(lambda self: self.todo)
    @rule(which=pick)
    def carry_out_any_instruction(self, which: int) -> None:
        instruction = self.todo.pop(which % len(self.todo))
        if isinstance(instruction, Decide):
            assert instruction.gpu == GPU
            self.publish_decision(instruction.node)

    @rule()
    def scheduler_crashes_and_starts_again(self) -> None:
        self.todo.clear()
        self.term += 1
        self.records = {
            job: msgspec.json.decode(msgspec.json.encode(record), type=JobRecord)
            for job, record in self.records.items()
        }
        for node in NODES:
            self.scheduler_looks_at_the_lease(node)
            self.publish_decision(node)

    @rule(node=nodes)
    def scheduler_looks_at_the_lease(self, node: str) -> None:
        if self.nodes[node].session is not None:
            self.sessions_seen[node] = self.nodes[node].session
            self.lose(node)

    @rule(node=nodes)
    def scheduler_fences(self, node: str) -> None:
        """Only when nothing lives there: that this is so after the silence is for the tests of the lease to show."""
        if self.nodes[node].session is None and not self.nodes[node].live():
            self.sessions_seen[node] = None
            self.lose(node)

    @precondition(lambda self: self.undelivered)
    @rule(which=pick)
    def deliver_any_fact(self, which: int) -> None:
        fact = self.undelivered.pop(which % len(self.undelivered))
        self.step(fact.job, fact)  # type: ignore[arg-type]

    @precondition(lambda self: self.stream)
    @rule(which=pick)
    def deliver_a_fact_again(self, which: int) -> None:
        fact = self.stream[-1 - which % len(self.stream)]
        self.step(fact.job, fact)  # type: ignore[arg-type]

    @rule(job=jobs)
    def a_fact_comes_from_a_node_that_never_ran_it(self, job: str) -> None:
        record = self.records[job]
        if record.placement is not None:
            other = NODES[record.placement.node == NODES[0]]
            for fact in self.stream:
                assert (fact.node, fact.job, fact.attempt) != (other, job, record.attempt)
            exited = RunExited(
                node=other, gpu=GPU, tenant="t", job=job, attempt=record.attempt, exit=ExitStatus(code=0), ended_ns=1
            )
            self.step(job, exited)
            assert self.records[job] is record

    # ------------------------------------------------------------ people

    @rule(job=jobs, seldom=st.integers(0, 9).map(lambda number: number == 9))
    def cancel(self, job: str, *, seldom: bool = True) -> None:
        """Seldom: a job that was cancelled early has little left to live through."""
        if not seldom:
            return
        if not self.records[job].state.terminal:
            self.cancelled.add(job)
        self.step(job, Cancel(reason="enough"))

    @rule(job=jobs)
    def withdraw(self, job: str) -> None:
        self.step(job, Withdraw(reason="an operator wants the GPU"))

    @rule(job=jobs, goes_on=st.booleans(), given_up=st.booleans())
    def profile_becomes_known(self, job: str, *, goes_on: bool, given_up: bool = False) -> None:
        """Whoever goes on is the same attempt in the same place, and no longer measured."""
        before = self.records[job]
        stimulus: Stimulus = ProfileDone(goes_on=goes_on)
        if given_up:
            stimulus = ProfileGivenUp(reason="never steady", goes_on=goes_on)
        self.step(job, stimulus)
        after = self.records[job]
        assert after.attempt == before.attempt
        assert after.profiled or after.state.terminal
        if before.state is JobState.PROFILING:
            assert (after.state is JobState.STOPPING) != goes_on

    @rule(job=jobs, priority=st.integers(0, 1))
    def submit_again(self, job: str, priority: int) -> None:
        record = self.records[job]
        spec = msgspec.structs.replace(record.spec, priority=priority)
        self.step(job, Submit(spec=spec, submission_id="again"))
        assert self.records[job] is record

    @rule()
    def ten_minutes_pass(self) -> None:
        self.now_ns += 600 * SECOND

    # ------------------------------------------------------------ nodes

    @rule(node=nodes, which=pick)
    def node_reads_a_decision(self, node: str, which: int) -> None:
        """The newest first, later any, again and again."""
        published, here = self.decisions[node], self.nodes[node]
        if published:
            decision = published[-1] if here.read is None else published[-1 - which % len(published)]
            if newer(here.read, decision):
                here.read = decision

    @rule(node=nodes)
    def node_reconciles(self, node: str) -> None:
        self.nodes[node].act(self.now_ns)

    @rule(node=nodes, which=pick)
    def program_starts(self, node: str, which: int) -> None:
        here = self.nodes[node]
        starting = [attempt for attempt, found in here.local.items() if found.state is LocalState.STARTING]
        if starting:
            attempt = starting[which % len(starting)]
            here.set(attempt, LocalState.RUNNING)
            here.tell(RunStarted, attempt, self.now_ns, pid=1, boot_id="boot")

    @rule(node=nodes, which=pick)
    def program_saves_its_state(self, node: str, which: int) -> None:
        here = self.nodes[node]
        if here.live():
            here.tell(RunCheckpointed, here.live()[which % len(here.live())], self.now_ns)

    @rule(node=nodes, which=pick, code=st.sampled_from([0, 1, None]))
    def program_ends(self, node: str, which: int, code: int | None) -> None:
        """Code None: nobody sees the exit."""
        here = self.nodes[node]
        if here.live():
            attempt = here.live()[which % len(here.live())]
            stopped_by = here.causes.get(attempt)
            here.end(attempt, ExitStatus(code=code, lost=code is None, stopped_by=stopped_by), self.now_ns)

    @rule()
    def all_goes_well_for_a_moment(self) -> None:
        """A walk at random rarely gets an attempt to run at all: facts stay undelivered, nothing ends."""
        while self.todo:
            self.carry_out_any_instruction(0)
        for name, node in self.nodes.items():
            self.node_reads_a_decision(name, 0)
            node.act(self.now_ns)
            self.program_starts(name, 0)
            self.node_publishes(name)

    @rule(node=nodes)
    def node_publishes(self, node: str) -> None:
        told = self.nodes[node].publish()
        self.stream += told
        self.undelivered += told

    @rule(node=nodes)
    def executor_restarts(self, node: str) -> None:
        self.nodes[node].read = None

    @rule(node=nodes)
    def lease_is_lost(self, node: str) -> None:
        self.nodes[node].session = None

    @rule(node=nodes)
    def node_takes_a_new_session(self, node: str) -> None:
        here = self.nodes[node]
        if here.session is None and not here.live():
            here.sessions += 1
            here.session = f"{node}-{here.sessions}"
            here.read = None

    @rule(node=nodes)
    def node_reboots_with_an_empty_disk(self, node: str) -> None:
        here = self.nodes[node]
        here.session = None
        here.local.clear()
        here.outbox.clear()
        here.read = None

    @rule(node=nodes, draining=st.booleans())
    def node_drains(self, node: str, *, draining: bool) -> None:
        self.nodes[node].draining = draining

    # ------------------------------------------------------------ what must hold

    @invariant()
    def records_are_valid(self) -> None:
        for record in self.records.values():
            validate(record)

    @invariant()
    def no_job_has_two_live_attempts(self) -> None:
        live = [attempt for node in self.nodes.values() for attempt in node.live()]
        assert len({attempt.job for attempt in live}) == len(live)
        for attempt in live:
            record = self.records[attempt.job]
            assert not record.state.terminal
            assert record.attempt == attempt.attempt

    @invariant()
    def no_gpu_has_two_live_attempts(self) -> None:
        for node in self.nodes.values():
            gpus = [node.local[attempt].gpu for attempt in node.live()]
            assert len(set(gpus)) == len(gpus)

    @invariant()
    def a_job_that_has_ended_has_one_terminal_event_and_any_other_none(self) -> None:
        for job, record in self.records.items():
            assert self.announced[job] == record.state.terminal
            assert terminal_event(record) == self.first_announced.get(job)

    @invariant()
    def outcomes_are_true(self) -> None:
        for job, record in self.records.items():
            finished = {a.attempt for node in self.nodes.values() for a in node.succeeded if a.job == job}
            if record.state is JobState.FINISHED:
                assert record.attempt in finished
            if record.state is JobState.CANCELLED:
                assert job in self.cancelled
            if record.state is JobState.FAILED:
                assert record.failures > record.spec.retries or record.losses > POLICY.max_losses

    def check(self) -> None:
        self.records_are_valid()
        self.no_job_has_two_live_attempts()
        self.no_gpu_has_two_live_attempts()
        self.a_job_that_has_ended_has_one_terminal_event_and_any_other_none()
        self.outcomes_are_true()

    def teardown(self) -> None:
        """Whatever happened: once nothing goes wrong any more, every job comes to its end."""
        for _ in range(30):
            if all(record.state.terminal for record in self.records.values()):
                break
            self._everything_goes_well()
        for record in self.records.values():
            assert record.state.terminal, record
        self.check()

    def _everything_goes_well(self) -> None:
        self.ten_minutes_pass()
        for name, node in self.nodes.items():
            node.draining = False
            self.node_takes_a_new_session(name)
            self.scheduler_looks_at_the_lease(name)
        for job, record in self.records.items():
            if record.state is JobState.PROFILING:
                self.profile_becomes_known(job, goes_on=False)
            self.place(job, NODES[JOBS.index(job)], Purpose.RUN)
        self.all_goes_well_for_a_moment()
        for name, node in self.nodes.items():
            while node.live():
                self.program_ends(name, 0, code=0)
            self.node_publishes(name)
            node.act(self.now_ns)
        while self.undelivered:
            self.deliver_any_fact(0)
            self.no_job_has_two_live_attempts()


World.TestCase.settings = settings(
    max_examples=120,
    stateful_step_count=100,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
TestWorld = World.TestCase


def walk(world: World, rng: random.Random) -> None:
    """Take one step. Weighted so that attempts get far before something happens to them."""
    job, node, which = rng.choice(JOBS), rng.choice(NODES), rng.randrange(12)
    steps: list[tuple[int, Callable[[], None]]] = [
        (12, lambda: world.place(job, node, rng.choice(list(Purpose)))),
        (8, world.all_goes_well_for_a_moment),
        (12, lambda: world.carry_out_any_instruction(which) if world.todo else None),
        (4, lambda: world.scheduler_looks_at_the_lease(node)),
        (4, lambda: world.scheduler_fences(node)),
        (1, world.scheduler_crashes_and_starts_again),
        (12, lambda: world.deliver_any_fact(which) if world.undelivered else None),
        (4, lambda: world.deliver_a_fact_again(which) if world.stream else None),
        (1, lambda: world.a_fact_comes_from_a_node_that_never_ran_it(job)),
        (1, lambda: world.cancel(job) if rng.random() < 0.05 else None),
        (3, lambda: world.withdraw(job)),
        (1, lambda: world.profile_becomes_known(job, goes_on=bool(which % 2), given_up=which < 6)),
        (1, lambda: world.submit_again(job, which % 2)),
        (2, world.ten_minutes_pass),
        (12, lambda: world.node_reads_a_decision(node, which)),
        (12, lambda: world.node_reconciles(node)),
        (6, lambda: world.program_starts(node, which)),
        (1, lambda: world.program_saves_its_state(node, which)),
        (2, lambda: world.program_ends(node, which, rng.choice([0, 1, 1, 1, None, None, None]))),
        (8, lambda: world.node_publishes(node)),
        (1, lambda: world.executor_restarts(node)),
        (2, lambda: world.lease_is_lost(node)),
        (8, lambda: world.node_takes_a_new_session(node)),
        (1, lambda: world.node_reboots_with_an_empty_disk(node)),
        (1, lambda: world.node_drains(node, draining=rng.random() < 0.3)),
    ]
    rng.choices([step for _, step in steps], [weight for weight, _ in steps])[0]()


def test_long_lives_keep_every_promise() -> None:
    """Hypothesis finds short stories; these are long ones, with many attempts on the same nodes."""
    attempts = 0
    for seed in range(150):
        world, rng = World(), random.Random(seed)
        for _ in range(400):
            walk(world, rng)
            try:
                world.check()
            except AssertionError as error:
                raise AssertionError(f"seed {seed}: {error}") from error
            if all(record.state.terminal for record in world.records.values()):
                break
        world.teardown()
        attempts += sum(record.attempt for record in world.records.values())
    assert attempts > 150 * 2 * 3, "the walks are too tame to show anything"
