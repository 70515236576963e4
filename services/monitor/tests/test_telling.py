"""What a monitor tells over the bus, with a node's own credentials, and what it takes from it."""

from __future__ import annotations

import asyncio
import signal
import time

from cuda_program import CudaProgram
from muxflow.bus import Bus, Message
from muxflow.contracts import (
    Attempt,
    DeviceAlert,
    DeviceCondition,
    DeviceFault,
    DeviceRequest,
    DeviceState,
    GpuSample,
    NodeTelemetry,
    OnlineAlert,
    OnlineState,
    Role,
    SloReport,
)
from muxflow.contracts.catalogue import (
    ALERTS_DEVICE,
    ALERTS_ONLINE,
    DEVICES_FAULT,
    DEVICES_STATE,
    ONLINE_STATE,
    REQUESTS_DEVICE,
    SLO,
    TELEMETRY,
)
from muxflow.testing import TestServer
from muxflow_decisions.device import Gate, GateState, JobPhase
from muxflow_device.pages import JobControlWriter, JobLimits, JobOrder, JobPage
from muxflow_simgpu import SimulatedMachine
from watched_node import NODE, SERVICE, Heard, MakeNode, WatchedNode, until

MS_NS = 1_000_000


async def healthy(heard: Heard, node: WatchedNode) -> None:
    for uuid in node.uuids:
        await heard.first(DeviceState, gpu=uuid, state=DeviceCondition.HEALTHY)


async def wish(operator: Bus, gpu: str, *, enabled: bool, reason: str = "") -> None:
    request = DeviceRequest(node=NODE, gpu=gpu, enabled=enabled, reason=reason)
    await operator.publish(REQUESTS_DEVICE, request, node=NODE, gpu=gpu)


async def test_every_device_tells_its_first_state_and_each_change_with_its_cause(
    operator: Bus, make_node: MakeNode
) -> None:
    node = make_node()
    heard = await Heard.on(operator, DEVICES_STATE)
    await healthy(heard, node)
    for uuid in node.uuids:
        first, second = heard.of(DeviceState, gpu=uuid)[:2]
        assert (first.state, first.previous, first.node) == (DeviceCondition.INIT, None, NODE)
        assert (second.state, second.previous) == (DeviceCondition.HEALTHY, DeviceCondition.INIT)
        assert second.epoch == first.epoch + 1
        assert second.cause.startswith("calm for ")
        assert second.sample is not None
        assert second.sample.memory_total_bytes is not None
        assert abs(second.since_ns - second.time_ns) < 5e9


async def test_a_state_that_lasts_is_told_again_and_is_no_change(operator: Bus, make_node: MakeNode) -> None:
    node = make_node(tell_again_s=1)
    heard = await Heard.on(operator, DEVICES_STATE)
    uuid = node.uuids[0]
    await until(lambda: heard.states(uuid)[-3:] == ["healthy"] * 3, "the state twice more")
    first, again, once_more = heard.of(DeviceState, gpu=uuid, state=DeviceCondition.HEALTHY)[:3]
    assert [again.id, once_more.id] == [f"{first.id}.again.1", f"{first.id}.again.2"]
    for event in (again, once_more):
        assert (event.epoch, event.since_ns, event.cause) == (first.epoch, first.since_ns, first.cause)
        assert event.time_ns - first.time_ns > 0.9e9
    assert len([line for line in node.logged("device") if line["gpu"] == uuid]) == 2  # init, healthy
    await wish(operator, uuid, enabled=False)
    await until(lambda: heard.states(uuid)[-2:] == ["disabled"] * 2, "the next state, and again")
    epochs = [event.epoch for event in heard.of(DeviceState, gpu=uuid)]
    assert epochs == sorted(epochs)


async def test_telemetry_holds_all_gpus_once_a_second_and_null_for_what_a_kind_does_not_give(
    operator: Bus, make_node: MakeNode
) -> None:
    node = make_node()
    telemetry: list[NodeTelemetry] = []

    def take(message: Message[NodeTelemetry]) -> None:
        if all(sample.state is DeviceCondition.HEALTHY for sample in message.event.gpus):
            telemetry.append(message.event)

    await operator.subscribe(TELEMETRY, take)
    await until(lambda: len(telemetry) >= 3, "three messages")
    for event in telemetry:
        t4, h200 = event.gpus
        assert [t4.gpu, h200.gpu] == node.uuids
        assert (t4.sm_activity_pct, t4.sm_occupancy_pct, t4.memory_bandwidth_pct) == (None, None, None)
        assert (h200.sm_activity_pct, h200.online_activity_pct) == (0, 0)
        assert t4.memory_used_bytes is not None
        assert (t4.offline_memory_bytes, t4.offline_busy_permille) == (0, 0)
    assert telemetry[2].time_ns - telemetry[0].time_ns > 1e9  # however late each of them was


async def test_telemetry_alone_tells_what_each_attempt_has_used(operator: Bus, make_node: MakeNode) -> None:
    node = make_node()
    attempt = Attempt(tenant="acme", job="train.v2", attempt=3)
    directory = node.run.job(attempt)
    order = JobOrder(gate=Gate(state=GateState.OPEN, budget_permille=1000), phase=JobPhase.RUN)
    JobControlWriter(directory, JobLimits(gpu=node.uuids[1], quota_bytes=None), order).close()
    JobPage.create(directory, gpu=node.uuids[1])
    samples: list[GpuSample] = []
    await operator.subscribe(TELEMETRY, lambda message: samples.append(message.event.gpus[1]))
    heard = await Heard.on(operator, DEVICES_STATE)
    await healthy(heard, node)
    await until(lambda: samples and samples[-1].offline, "the attempt")
    (usage,) = samples[-1].offline
    assert Attempt(tenant=usage.tenant, job=usage.job, attempt=usage.attempt) == attempt
    assert (usage.launches, usage.busy_us, usage.memory_bytes) == (0, 0, 0)
    assert 0 <= time.time_ns() - samples[-1].taken_ns < 10e9
    await wish(operator, node.uuids[1], enabled=False)
    state = await heard.first(DeviceState, gpu=node.uuids[1], state=DeviceCondition.DISABLED)
    assert state.sample is not None
    assert (state.sample.offline, state.sample.taken_ns) == ((), 0)
    directory.remove()
    await until(lambda: not samples[-1].offline, "that it has gone")


async def test_states_of_an_outage_arrive_in_order_when_the_bus_is_back(
    operator: Bus, server: TestServer, make_node: MakeNode, machine: SimulatedMachine
) -> None:
    node = make_node()
    heard = await Heard.on(operator, DEVICES_STATE, DEVICES_FAULT)
    await healthy(heard, node)
    await server.kill()
    machine.lose(0)
    await until(lambda: node.look().condition is DeviceCondition.OVERLIMIT, "Overlimit without a bus")
    machine.restore(0)
    await until(lambda: node.look().condition is DeviceCondition.HEALTHY, "Healthy without a bus")
    await server.start()
    await until(lambda: heard.states(node.uuids[0])[-2:] == ["overlimit", "healthy"], "what has happened")
    states = heard.of(DeviceState, gpu=node.uuids[0])
    assert [state.epoch for state in states] == sorted({state.epoch for state in states})
    assert [fault.kind for fault in heard.of(DeviceFault)] == ["lost"]


async def test_what_happened_before_the_bus_was_ever_there_is_told(server: TestServer, make_node: MakeNode) -> None:
    await server.kill()
    node = make_node()
    await until(lambda: node.look().gate.state is GateState.OPEN, "an open gate without a bus")
    await server.start()
    async with await server.connect(Role.OPERATOR) as operator:
        heard = await Heard.on(operator, DEVICES_STATE)
        await until(lambda: heard.states(node.uuids[0]) == ["init", "healthy"], "both states")


async def test_a_restarted_monitor_tells_its_first_state_again(operator: Bus, make_node: MakeNode) -> None:
    node = make_node()
    heard = await Heard.on(operator, DEVICES_STATE)
    await healthy(heard, node)
    node.end(signal.SIGKILL)
    node.start()
    await until(lambda: heard.states(node.uuids[0]) == ["init", "healthy"] * 2, "the same again")
    epochs = [state.epoch for state in heard.of(DeviceState, gpu=node.uuids[0])]
    assert epochs == sorted(set(epochs))


async def test_a_lost_gpu_is_told_once_as_a_fault_and_an_alert_and_its_return_too(
    operator: Bus, make_node: MakeNode, machine: SimulatedMachine
) -> None:
    node = make_node()
    heard = await Heard.on(operator, DEVICES_STATE, DEVICES_FAULT, ALERTS_DEVICE)
    await healthy(heard, node)
    machine.lose(1)
    fault = await heard.first(DeviceFault)
    assert (fault.gpu, fault.kind, fault.contained) == (node.uuids[1], "lost", False)
    alert = await heard.first(DeviceAlert)
    assert (alert.severity, alert.gpu) == ("critical", node.uuids[1])
    machine.restore(1)
    await until(lambda: heard.states(node.uuids[1])[-1] == "healthy", "Healthy again")
    assert len(heard.of(DeviceFault)) == 1
    assert [alert.severity for alert in heard.of(DeviceAlert)] == ["critical", "info"]


async def test_an_xid_is_told_with_what_it_means(operator: Bus, make_node: MakeNode, machine: SimulatedMachine) -> None:
    node = make_node()
    heard = await Heard.on(operator, DEVICES_STATE, DEVICES_FAULT, ALERTS_DEVICE)
    await healthy(heard, node)
    machine.inject_xid(0, 31)
    fault = await heard.first(DeviceFault, xid=31)
    assert (fault.gpu, fault.kind, fault.message) == (node.uuids[0], "xid", "GPU memory page fault")
    assert fault.contained is True
    machine.inject_xid(0, 48)
    fatal = await heard.first(DeviceFault, xid=48)
    assert fatal.contained is False
    state = await heard.first(DeviceState, gpu=node.uuids[0], state=DeviceCondition.OVERLIMIT)
    assert state.cause == "fault: xid 48, double-bit ECC error"
    assert (await heard.first(DeviceAlert)).severity == "critical"


async def test_a_board_that_slows_down_is_told_once(
    operator: Bus, make_node: MakeNode, machine: SimulatedMachine
) -> None:
    node = make_node()
    heard = await Heard.on(operator, DEVICES_STATE, DEVICES_FAULT)
    await healthy(heard, node)
    machine.set_clock(0, 600, throttle_reasons=0x40)
    fault = await heard.first(DeviceFault)
    assert (fault.kind, fault.message) == ("clock", "hardware thermal slowdown")
    assert len(heard.of(DeviceFault)) == 1


async def test_an_operator_disables_and_enables_a_device(operator: Bus, make_node: MakeNode) -> None:
    node = make_node()
    heard = await Heard.on(operator, DEVICES_STATE)
    await healthy(heard, node)
    await wish(operator, node.uuids[0], enabled=False, reason="new fan")
    state = await heard.first(DeviceState, gpu=node.uuids[0], state=DeviceCondition.DISABLED)
    assert state.cause == "disabled by an operator: new fan"
    assert node.look().gate.state is GateState.TRICKLE  # for a job that saves its state before it goes
    assert node.look(1).gate.state is GateState.OPEN
    await wish(operator, node.uuids[0], enabled=True)
    await until(lambda: heard.states(node.uuids[0])[-2:] == ["init", "healthy"], "Healthy again")


async def test_a_disabled_device_stays_so_when_monitor_and_bus_are_killed(
    operator: Bus, server: TestServer, make_node: MakeNode
) -> None:
    node = make_node()
    heard = await Heard.on(operator, DEVICES_STATE)
    await wish(operator, node.uuids[0], enabled=False)
    await heard.first(DeviceState, gpu=node.uuids[0], state=DeviceCondition.DISABLED)
    await healthy(heard, WatchedOnly(node, 1))
    await server.kill()
    node.end(signal.SIGKILL)
    epoch = node.look(1).epoch
    node.start()
    await until(lambda: node.look(1).epoch > epoch and node.look(1).gate.state is GateState.OPEN, "the other's gate")
    assert node.look(0).condition is DeviceCondition.DISABLED
    assert node.look(0).gate.state is GateState.TRICKLE


class WatchedOnly(WatchedNode):
    """One GPU of a node."""

    def __init__(self, node: WatchedNode, index: int) -> None:
        self._uuid = node.uuids[index]

    @property
    def uuids(self) -> list[str]:
        return [self._uuid]


async def test_a_request_for_a_gpu_that_is_not_here_stops_nothing(operator: Bus, make_node: MakeNode) -> None:
    node = make_node()
    heard = await Heard.on(operator, DEVICES_STATE)
    await wish(operator, "GPU-elsewhere", enabled=False)
    await until(lambda: node.logged("request for a GPU that is not here"), "a line")
    await healthy(heard, node)
    assert "disabled" not in heard.states(node.uuids[0])


async def test_online_workloads_are_told_as_they_come_and_go(
    operator: Bus, make_node: MakeNode, machine: SimulatedMachine
) -> None:
    online = {SERVICE: {"gpu": 0, "match": "cuda_program", "latency_target_ms": 20}}
    node = make_node(online=online)
    heard = await Heard.on(operator, ONLINE_STATE)
    nobody = await heard.first(OnlineState, gpu=node.uuids[0])
    assert (nobody.workload, nobody.pids) == (None, ())
    with CudaProgram({**machine.environment(), "CUDA_VISIBLE_DEVICES": "0"}) as program:
        program.do("context")
        state = await heard.first(OnlineState, workload=SERVICE)
        assert (state.gpu, state.pids, state.latency_target_ms) == (node.uuids[0], (program.pid,), 20)
    await until(lambda: heard.of(OnlineState, gpu=node.uuids[0])[-1].workload is None, "that it has gone")


async def test_an_undeclared_process_is_named_until_somebody_declares_it(
    operator: Bus, make_node: MakeNode, machine: SimulatedMachine
) -> None:
    node = make_node()
    heard = await Heard.on(operator, ONLINE_STATE)
    with CudaProgram({**machine.environment(), "CUDA_VISIBLE_DEVICES": "1"}) as program:
        program.do("context")
        await until(lambda: [e for e in heard.of(OnlineState, gpu=node.uuids[1]) if e.workload], "that it is there")
        named = heard.of(OnlineState, gpu=node.uuids[1])[-1]
        assert (named.workload or "").startswith("undeclared:python")
        (node.state_dir / "online.toml").write_text('[search]\ngpu = 1\nmatch = "cuda_program"\n')
        state = await heard.first(OnlineState, workload="search")
        assert state.pids == (program.pid,)


async def test_a_wrong_file_of_workloads_is_logged_and_the_right_ones_stay(
    operator: Bus, make_node: MakeNode, machine: SimulatedMachine
) -> None:
    node = make_node(online={SERVICE: {"gpu": 0, "match": "cuda_program"}})
    heard = await Heard.on(operator, ONLINE_STATE)
    await heard.first(OnlineState, gpu=node.uuids[0])
    (node.state_dir / "online.toml").write_text("[search]\ngpu = 17\n")
    await until(lambda: node.logged("online workloads stay as they were"), "one line")
    with CudaProgram({**machine.environment(), "CUDA_VISIBLE_DEVICES": "0"}) as program:
        program.do("context")
        await heard.first(OnlineState, workload=SERVICE)


async def test_the_peak_of_online_activity_is_told(
    operator: Bus, make_node: MakeNode, machine: SimulatedMachine
) -> None:
    make_node(online={SERVICE: {"gpu": 1, "match": "cuda_program"}})
    heard = await Heard.on(operator, ONLINE_STATE)
    with CudaProgram({**machine.environment(), "CUDA_VISIBLE_DEVICES": "1"}) as program:
        program.do("context")
        program.do("launch", 60_000 * MS_NS, 40, 0)
        await until(
            lambda: any(35 <= (state.activity_peak_pct or 0) <= 45 for state in heard.of(OnlineState)),
            "a peak of 40 %",
        )


async def test_a_service_that_misses_its_target_alerts_and_the_device_reacts(
    operator: Bus, server: TestServer, make_node: MakeNode
) -> None:
    node = make_node(online={SERVICE: {"gpu": 0, "match": "serve", "latency_target_ms": 20}})
    heard = await Heard.on(operator, DEVICES_STATE, ALERTS_ONLINE)
    await healthy(heard, node)
    async with await server.connect(Role.ONLINE, SERVICE) as service:
        reporting = asyncio.ensure_future(report(service, 30))
        alert = await heard.first(OnlineAlert)
        assert (alert.workload, alert.gpu, alert.latency_target_ms) == (SERVICE, node.uuids[0], 20)
        state = await heard.first(DeviceState, gpu=node.uuids[0], state=DeviceCondition.OVERLIMIT)
        assert "1.50 × target" in state.cause
        reporting.cancel()
    assert heard.states(node.uuids[1])[-1] == "healthy"
    assert len(heard.of(OnlineAlert)) == 1


async def report(service: Bus, latency_ms: float) -> None:
    while True:
        said = SloReport(workload=SERVICE, window_s=1, requests=10, latency_p99_ms=latency_ms)
        await service.publish_live(SLO, said, workload=SERVICE)
        await asyncio.sleep(0.3)
