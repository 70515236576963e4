"""The evictor as a process: when it has a device cleared, and what it tells, whatever dies meanwhile."""

from __future__ import annotations

import asyncio
import signal
import time
import urllib.error
import urllib.request
from pathlib import Path

from evicting_node import GPU, JOB, NODE, EvictingNode
from muxflow.bus.credentials import Principal
from muxflow.bus.embedded import free_port
from muxflow.contracts import Attempt, DeviceCondition, ExitStatus, Role
from muxflow.contracts.catalogue import ONLINE_STATE
from muxflow.contracts.nodes import OnlineState
from muxflow_device.breaches import Broken, write_breaches
from world import Service

HARD = "memory: 12 MiB free, less than the reserve of 256 MiB"


async def test_hard_overlimit_clears_the_device_at_once_and_is_told_twice(node: EvictingNode) -> None:
    node.executor.start_job()
    await node.start_evictor()
    node.monitor.activity_permille = 970
    since_ns = node.monitor.say(DeviceCondition.OVERLIMIT, HARD, hard=True)
    order = await node.executor.ordered()
    assert (order.gpu, order.attempts, order.hard) == (GPU, None, True)
    assert HARD in order.cause
    begun, _ = await node.alert(1)
    node.monitor.activity_permille = 400
    over, _ = await node.alert(2)
    assert (begun.node, begun.gpu, begun.tenant, begun.job, begun.attempt) == (NODE, GPU, "default", "train", 1)
    assert begun.before is not None
    assert (begun.before.state, begun.before.online_activity_pct) == (DeviceCondition.OVERLIMIT, 97.0)
    assert (begun.after, begun.total_ms) == (None, None)
    assert since_ns <= begun.decided_ns == over.decided_ns
    assert over.id != begun.id
    assert over.after is not None
    assert over.total_ms is not None
    assert over.before == begun.before


async def test_overlimit_clears_the_device_only_when_it_lasts(node: EvictingNode) -> None:
    node.executor.start_job()
    await node.start_evictor(policy='{"evict_after_s": 1.5}')
    node.monitor.say(DeviceCondition.OVERLIMIT, "online activity 95% > 90%")
    await asyncio.sleep(0.1)  # a burst
    node.monitor.say(DeviceCondition.HEALTHY)
    since_ns = node.monitor.say(DeviceCondition.OVERLIMIT, "online activity 96% > 90%")
    order = await node.executor.ordered()
    assert not order.hard
    assert "96%" in order.cause
    assert order.decided_ns - since_ns >= 1.49e9
    assert len(node.executor.orders) == 1


async def test_disabled_device_is_cleared(node: EvictingNode) -> None:
    node.executor.start_job()
    await node.start_evictor()
    node.monitor.say(DeviceCondition.DISABLED, "by an operator: new cooling")
    assert (await node.alert(2))[0].cause == "by an operator: new cooling"


async def test_job_that_broke_a_rule_is_stopped_alone_and_once(node: EvictingNode) -> None:
    other = Attempt(tenant="default", job="other", attempt=1)
    for attempt in (JOB, other):
        node.executor.start_job(attempt)
    await node.start_evictor()
    decided_ns = time.time_ns()
    broken = Broken(attempt=JOB, cause="it uses 9.3 GiB", decided_ns=decided_ns)
    write_breaches(node.run.device(GPU), [broken])
    order = await node.executor.ordered()
    assert (order.attempts, order.breach, order.hard, order.decided_ns) == ((JOB,), True, True, decided_ns)
    begun, over = (await node.alert(1))[0], (await node.alert(2))[0]
    assert (begun.job, begun.breach, begun.cause) == ("train", True, "it uses 9.3 GiB")
    assert over.total_ms is not None
    write_breaches(node.run.device(GPU), [broken, Broken(attempt=other, cause="so does it", decided_ns=decided_ns)])
    assert (await node.executor.ordered(2)).attempts == (other,)
    assert len(node.executor.orders) == 2


async def test_evictor_that_starts_after_a_breach_tells_nobody_of_a_job_that_has_gone(node: EvictingNode) -> None:
    write_breaches(node.run.device(GPU), [Broken(attempt=JOB, cause="it used 9.3 GiB", decided_ns=time.time_ns())])
    await node.start_evictor()
    await node.executor.ordered()
    await node.logged("order carried out")
    assert node.alerts == []


async def test_job_that_broke_a_rule_is_ordered_to_stop_until_it_has_gone(node: EvictingNode) -> None:
    node.executor.refuses = True
    node.executor.start_job()
    await node.start_evictor(policy='{"repeat_first_s": 0.1}')
    write_breaches(node.run.device(GPU), [Broken(attempt=JOB, cause="it uses 9.3 GiB", decided_ns=time.time_ns())])
    await node.executor.ordered(2)
    node.executor.refuses = False
    begun, _ = await node.alert(1)
    await node.alert(2)
    assert begun.breach
    assert {(order.attempts, order.breach) for order in node.executor.orders} == {((JOB,), True)}


async def test_alert_of_the_decision_names_the_online_workload(node: EvictingNode) -> None:
    state = OnlineState(node=NODE, gpu=GPU, workload="search")
    async with await node.world.connect(Principal(role=Role.NODE, bound_to=NODE)) as monitor:
        await monitor.publish(ONLINE_STATE, state, node=NODE, gpu=GPU)
    node.executor.start_job()
    await node.start_evictor()
    await node.logged("online workload")
    node.monitor.say(DeviceCondition.DISABLED)
    order = await node.executor.ordered()
    assert order.workload == "search"
    assert (await node.alert())[0].workload == "search"


async def test_dead_monitor_evicts_nobody_and_a_new_one_does(node: EvictingNode) -> None:
    node.executor.start_job()
    node.monitor.say(DeviceCondition.OVERLIMIT, "its last words", hard=True)
    await node.monitor.die()
    await asyncio.sleep(0.4)  # the page is stale after 0.3 s
    await node.start_evictor()
    node.monitor.say(DeviceCondition.HEALTHY)
    node.monitor.start()
    node.monitor.say(DeviceCondition.DISABLED, "said by a monitor that lives")
    assert (await node.executor.ordered()).cause == "said by a monitor that lives"


async def test_executor_that_is_away_is_asked_until_it_is_back_and_complained_of_once(node: EvictingNode) -> None:
    node.executor.start_job()
    await node.executor.hang_up()
    await node.start_evictor()
    node.monitor.say(DeviceCondition.OVERLIMIT, HARD, hard=True)
    begun, _ = await node.alert()  # told all the same
    await node.logged("the executor does not answer; asking on")
    await asyncio.sleep(0.5)  # it asks again every 0.2 s
    await node.executor.listen()
    over, _ = await node.alert(2)
    assert over.decided_ns == begun.decided_ns
    assert over.total_ms is not None
    assert over.total_ms > 500
    assert len(node.log("the executor does not answer; asking on")) == 1
    assert len(node.executor.orders) == 1


async def test_executor_that_dies_on_the_way_is_asked_again_and_nothing_is_told_twice(node: EvictingNode) -> None:
    node.executor.may_end.clear()
    node.executor.start_job()
    await node.start_evictor()
    node.monitor.say(DeviceCondition.OVERLIMIT, HARD, hard=True)
    await node.executor.ordered(1)
    await node.executor.hang_up()
    await node.executor.listen()
    await node.executor.ordered(2)
    node.executor.may_end.set()
    await node.alert(2)
    node.monitor.say(DeviceCondition.HEALTHY)
    await no_more_alerts(node)
    assert [alert.total_ms is None for alert, _ in node.alerts] == [True, False]


async def test_evictor_killed_on_the_way_goes_on_after_its_restart_and_tells_nothing_twice(node: EvictingNode) -> None:
    node.executor.may_end.clear()
    node.executor.start_job()
    await node.start_evictor()
    node.monitor.say(DeviceCondition.OVERLIMIT, HARD, hard=True)
    begun, _ = await node.alert()
    await asyncio.to_thread(node.evictor.kill)
    await node.start_evictor()
    await node.executor.ordered(2)
    node.executor.may_end.set()
    over, _ = await node.alert(2)
    node.monitor.say(DeviceCondition.HEALTHY)
    await no_more_alerts(node)
    assert over.decided_ns == begun.decided_ns
    assert [alert.id.rpartition(".")[2] for alert, _ in node.alerts] == ["begun", "over"]


async def test_evictor_that_was_away_when_the_job_ended_tells_it_afterwards(node: EvictingNode) -> None:
    node.executor.may_end.clear()
    node.executor.start_job()
    await node.start_evictor()
    node.monitor.say(DeviceCondition.OVERLIMIT, HARD, hard=True)
    begun, _ = await node.alert()
    await asyncio.to_thread(node.evictor.kill)
    node.executor.end_job(JOB, ExitStatus(signal="SIGTERM"))
    node.monitor.say(DeviceCondition.HEALTHY)
    node.executor.may_end.set()
    await node.start_evictor()
    over, _ = await node.alert(2)
    assert (over.job, over.decided_ns) == (begun.job, begun.decided_ns)
    assert over.total_ms is not None


async def test_eviction_needs_no_bus_and_is_told_when_it_is_back(node: EvictingNode) -> None:
    node.executor.start_job()
    await node.world.servers[0].kill()
    await node.start_evictor()
    since_ns = node.monitor.say(DeviceCondition.OVERLIMIT, HARD, hard=True)
    order = await node.executor.ordered()
    assert order.decided_ns - since_ns < 5e9
    await node.logged("evicted")
    await node.world.servers[0].start()
    over, _ = await node.alert(2)
    assert over.decided_ns == order.decided_ns


async def test_attempt_that_only_the_executor_knows_is_told_of_too(node: EvictingNode) -> None:
    unseen = Attempt(tenant="default", job="unseen", attempt=3)
    node.executor.start_job(unseen, gpu="GPU-another")  # so that its page names another GPU
    await node.start_evictor()
    node.monitor.say(DeviceCondition.DISABLED)
    await node.alert(2)
    assert {alert.job for alert, _ in node.alerts} == {"unseen"}


async def test_attempt_on_another_gpu_is_left_alone(node: EvictingNode) -> None:
    node.executor.start_job(gpu="GPU-another")
    node.executor.running.clear()  # the executor looks at the order's GPU
    await node.start_evictor()
    node.monitor.say(DeviceCondition.DISABLED)
    await node.executor.ordered()
    await no_more_alerts(node)
    assert node.alerts == []


async def test_attempt_that_ends_by_itself_before_the_executor_is_asked_is_told_as_over(node: EvictingNode) -> None:
    node.executor.start_job()
    await node.executor.hang_up()
    await node.start_evictor()
    node.monitor.say(DeviceCondition.OVERLIMIT, HARD, hard=True)
    await node.alert(1)
    node.executor.end_job(JOB, ExitStatus(code=0))
    await node.executor.listen()
    over, _ = await node.alert(2)
    assert over.total_ms is not None
    assert node.executor.orders[-1].attempts == (JOB,)


async def test_readiness_and_metrics_say_what_the_evictor_waits_for(node: EvictingNode) -> None:
    port = free_port()
    node.world.env["MUXFLOW_HTTP__PORT"] = str(port)
    node.executor.start_job()
    await node.executor.hang_up()
    await node.start_evictor()
    await until_answered(port, "readyz", "ok")
    node.monitor.say(DeviceCondition.OVERLIMIT, HARD, hard=True)
    await until_answered(port, "readyz", "executor: ")
    await until_answered(port, "metrics", "muxflow_evictor_under_way 1.0")
    await node.executor.listen()
    await node.alert(2)
    await until_answered(port, "readyz", "ok")
    await until_answered(port, "metrics", "muxflow_evictor_eviction_seconds_count 1.0")
    await node.monitor.die()
    await until_answered(port, "readyz", "devices: no device page is written")


async def test_refused_order_is_complained_of_and_repeated_ever_more_slowly(node: EvictingNode) -> None:
    node.executor.refuses = True
    node.executor.start_job()
    await node.start_evictor(policy='{"repeat_first_s": 0.1}')
    node.monitor.say(DeviceCondition.DISABLED)
    await node.executor.ordered(3)
    assert "another version" in (await node.logged("the executor refuses an order"))["reason"]
    times_ns = [order.decided_ns for order in node.executor.orders]
    assert times_ns[1] - times_ns[0] >= 0.1e9
    assert times_ns[2] - times_ns[1] >= 0.2e9
    node.executor.refuses = False
    await node.alert(2)
    assert [alert.total_ms is None for alert, _ in node.alerts] == [True, False]


async def test_eviction_that_cannot_be_read_is_dropped_with_one_line(node: EvictingNode) -> None:
    (node.state_dir / "under_way").mkdir(parents=True)
    (node.state_dir / "under_way" / "torn.json").write_text('{"torn')
    await node.start_evictor()
    assert (await node.logged("eviction unreadable, dropped"))["file"] == "torn.json"
    assert list((node.state_dir / "under_way").iterdir()) == []


async def test_second_evictor_on_one_state_directory_says_so_in_one_line(node: EvictingNode, tmp_path: Path) -> None:
    await node.start_evictor()
    second = Service("second", "muxflow_evictor", node.env(), tmp_path / "second.log")
    second.start()
    async with asyncio.timeout(20):
        while second.running:
            await asyncio.sleep(0.02)
    lines = [line for line in second.log.read_text().splitlines() if '"error"' in line]
    assert len(lines) == 1
    assert "in use by another evictor" in lines[0]


async def test_run_directory_that_others_could_write_to_is_refused_in_one_line(
    node: EvictingNode, tmp_path: Path
) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    evictor = Service("evictor", "muxflow_evictor", node.env(run_dir=str(tmp_path / "open")), tmp_path / "bad.log")
    evictor.start()
    async with asyncio.timeout(20):
        while evictor.running:
            await asyncio.sleep(0.02)
    lines = [line for line in evictor.log.read_text().splitlines() if '"error"' in line]
    assert len(lines) == 1
    assert f"evictor.run_dir {tmp_path}/open" in lines[0]


async def test_sigterm_ends_it_in_the_middle_of_an_eviction(node: EvictingNode) -> None:
    node.executor.may_end.clear()
    node.executor.start_job()
    await node.start_evictor()
    node.monitor.say(DeviceCondition.DISABLED)
    await node.executor.ordered()
    await asyncio.to_thread(node.evictor.kill, signal.SIGTERM)
    assert (await node.logged("stopped"))["exit_code"] == 0


async def until_answered(port: int, path: str, text: str) -> None:
    async with asyncio.timeout(20):
        while text not in await asyncio.to_thread(answer, port, path):
            await asyncio.sleep(0.05)


def answer(port: int, path: str) -> str:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=5) as response:
            return str(response.read().decode())
    except urllib.error.HTTPError as error:
        with error:
            return error.read().decode()
    except OSError:
        return ""


async def no_more_alerts(node: EvictingNode) -> None:
    """See that nothing waits in the evictor to be told."""
    await asyncio.to_thread(node.evictor.kill, signal.SIGTERM)
    await node.start_evictor()
    await node.logged("started", len(node.log("started")))
