"""Real pynvml over the simulated library, in a process of its own: only its loader knows which library it gets."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from muxflow_device.readings.question import Question
from muxflow_device.readings.reader import UtilizationMeter
from muxflow_simgpu import SimulatedMachine
from simulated_gpus import Puppet, puppet, simulated

PREPARATION = """
from muxflow_device.faults import XidWatch
from muxflow_device.inventory import discover
from muxflow_device.nvml import Nvml
from muxflow_device.readings.reader import GpuAway, GpuReader

nvml = Nvml()
nvml.open()
gpus = discover()
readers = [GpuReader(nvml, gpu.uuid) for gpu in gpus]
xids = []
watch = XidWatch(nvml, [gpu.uuid for gpu in gpus], lambda uuid, xid: xids.append((uuid, xid)))

def look(index):
    try:
        return readers[index].look(by_process=True)
    except GpuAway as away:
        return away.trouble.value
"""


@pytest.fixture
def machine() -> Iterator[SimulatedMachine]:
    with simulated("T4", "A100", "H200") as machine:
        yield machine


@pytest.fixture
def node(machine: SimulatedMachine) -> Iterator[Puppet]:
    with puppet(PREPARATION, machine.environment()) as node:
        assert node.ask("len(gpus)") == 3
        yield node


def until(look: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + 10
    while not (found := look()):
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.02)
    return found


def test_gpus_are_found_in_order_with_their_kind_and_memory(machine: SimulatedMachine, node: Puppet) -> None:
    found = node.ask("gpus")
    assert [gpu["kind"] for gpu in found] == ["T4", "A100", "H200"]
    assert [gpu["uuid"] for gpu in found] == [device.uuid for device in machine.devices()]
    assert [gpu["index"] for gpu in found] == [0, 1, 2]
    assert [gpu["memory_bytes"] for gpu in found] == [device.memory_bytes for device in machine.devices()]


def test_a_lost_gpu_is_left_out_of_the_inventory(machine: SimulatedMachine, node: Puppet) -> None:
    machine.lose(1)
    assert [gpu["kind"] for gpu in node.ask("discover()")] == ["T4", "H200"]


def test_a_node_without_a_driver_says_so_in_one_line(tmp_path: Path, machine: SimulatedMachine) -> None:
    (tmp_path / "libnvidia-ml.so.1").touch()
    with (
        puppet("from muxflow_device.inventory import discover\n", {"LD_LIBRARY_PATH": str(tmp_path)}) as elsewhere,
        pytest.raises(AssertionError, match=r"^NvmlUnavailable: NVML cannot be used: NVML Shared Library Not Found"),
    ):
        elsewhere.ask("discover()")


def test_a_node_without_gpus_has_an_empty_inventory(tmp_path: Path, machine: SimulatedMachine) -> None:
    env = {**machine.environment(), "MUXFLOW_SIMGPU": str(tmp_path)}
    with puppet("from muxflow_device.inventory import discover\n", env) as elsewhere:
        assert elsewhere.ask("discover()") == []


def test_an_idle_gpu_is_read_as_idle(node: Puppet) -> None:
    assert until(lambda: node.ask("look(0)")["utilization"], "a whole period")["part"] == 0
    look = node.ask("look(0)")
    assert 0 < look["memory_used_bytes"] < look["memory_total_bytes"]
    assert 0 < look["sm_clock_mhz"] <= look["sm_clock_max_mhz"]
    assert look["power_w"] > 0
    assert look["temperature_c"] > 0
    assert look["processes"] == []
    assert look["shared"] is False


def test_the_utilization_covers_the_period_that_the_kind_has(node: Puppet) -> None:
    for index, longest_s in ((0, 1.0), (2, 1.0)):
        look = until(lambda index=index: node.ask(f"look({index})"), "a look")  # type: ignore[misc]
        share = until(lambda index=index: node.ask(f"look({index})")["utilization"], "a period")  # type: ignore[misc]
        assert 0 < share["end_ns"] - share["begin_ns"] <= longest_s * 1e9
        assert share["end_ns"] <= look["time_ns"] + 10 * 1e9


def test_what_a_kind_never_gives_is_null_and_not_asked_again(node: Puppet) -> None:
    for _ in range(3):
        look = node.ask("look(0)")
        assert (look["sm_activity"], look["settling"]) == (None, False)
    assert node.ask("readers[0].capabilities()")["gpm"] is False
    assert node.ask("look(0)")["sm_occupancy_pct"] is None


def test_gpm_gives_sm_activity_between_samples_more_than_a_tenth_of_a_second_apart(node: Puppet) -> None:
    first = node.ask("look(2)")
    assert (first["sm_activity"], first["settling"]) == (None, True)
    share = until(lambda: node.ask("look(2)")["sm_activity"], "two samples far enough apart")
    assert share["part"] == 0
    assert share["end_ns"] - share["begin_ns"] > 100_000_000


def test_a_lost_gpu_is_away_and_comes_back_while_the_others_go_on(machine: SimulatedMachine, node: Puppet) -> None:
    machine.lose(1)
    assert node.ask("look(1)") == "lost"
    assert node.ask("look(0)")["memory_total_bytes"] > 0
    machine.restore(1)
    assert until(lambda: node.ask("look(1)") != "lost", "an answer")
    assert node.ask("look(1)")["memory_total_bytes"] > 0


def test_readers_go_on_over_a_renewal_of_nvml(node: Puppet) -> None:
    node.ask("[look(index) for index in range(3)]")
    assert node.ask("nvml.renew(1)") is None
    assert all(look["memory_total_bytes"] > 0 for look in node.ask("[look(index) for index in range(3)]"))


def test_a_renewal_that_somebody_else_has_made_is_not_made_again(node: Puppet) -> None:
    node.ask("nvml.renew(1)")
    node.ask("nvml.renew(1)")
    assert node.ask("nvml._opening") == 2


def test_xids_are_told_with_their_gpu(machine: SimulatedMachine, node: Puppet) -> None:
    node.ask("watch.start()")
    uuid = machine.devices()[2].uuid

    def told() -> Any:
        machine.inject_xid(2, 31)  # again and again: one that came before the watch had registered is not told
        return node.ask("xids")

    assert until(told, "the XID")[0] == [uuid, 31]
    node.ask("watch.close()")


def test_xids_are_told_after_a_renewal_and_after_a_loss(machine: SimulatedMachine, node: Puppet) -> None:
    node.ask("watch.start()")
    machine.lose(0)
    node.ask("nvml.renew(1)")
    machine.restore(0)
    node.ask("watch.again()")
    uuid = machine.devices()[0].uuid

    def told() -> bool:
        machine.inject_xid(0, 43)
        return [uuid, 43] in node.ask("xids")

    assert until(told, "the XID")
    node.ask("watch.close()")


class Answers:
    """What a call gives, one after the other; an integer is an error of NVML."""

    def __init__(self, *answers: Any) -> None:
        self._answers = list(answers)
        self.calls = 0

    def __call__(self) -> Any:
        self.calls += 1
        answer = self._answers.pop(0)
        if isinstance(answer, int):
            raise pynvml.NVMLError(answer)
        return answer


def test_a_call_that_fails_once_gives_null_once_and_is_asked_again() -> None:
    failing: set[str] = set()
    question = Question("power", Answers(pynvml.NVML_ERROR_UNKNOWN, "watts"), failing)
    assert question.ask(pynvml.NVMLError) is None
    assert failing == {"power"}
    assert question.ask(pynvml.NVMLError) == "watts"
    assert not failing


def test_a_call_that_is_not_supported_is_made_once() -> None:
    answers = Answers(pynvml.NVML_ERROR_NOT_SUPPORTED)
    question = Question("gpm", answers, set())
    assert [question.ask(pynvml.NVMLError) for _ in range(3)] == [None, None, None]
    assert answers.calls == 1
    assert question.supported is False


def test_nothing_found_is_an_answer() -> None:
    question = Question("processes", Answers(pynvml.NVML_ERROR_NOT_FOUND), set())
    assert question.ask(pynvml.NVMLError, ()) == ()
    assert question.supported is True


def test_a_gpu_that_is_lost_ends_the_questions() -> None:
    question = Question("memory", Answers(pynvml.NVML_ERROR_GPU_IS_LOST), set())
    with pytest.raises(pynvml.NVMLError):
        question.ask(pynvml.NVMLError)


class Samples:
    """A driver's buffer of utilization samples, as pynvml gives it."""

    NVML_GPU_UTILIZATION_SAMPLES = 1
    NVMLError = pynvml.NVMLError

    def __init__(self) -> None:
        self.buffer: list[SimpleNamespace] = []

    def add(self, pct: int, *, age_us: int) -> None:
        value = SimpleNamespace(uiVal=pct)
        self.buffer.append(SimpleNamespace(timeStamp=time.time_ns() // 1000 - age_us, sampleValue=value))

    def nvmlDeviceGetSamples(self, _handle: None, _kind: int, last_us: int) -> tuple[int, list[SimpleNamespace]]:  # noqa: N802
        newer = [sample for sample in self.buffer if sample.timeStamp > last_us]
        if not newer:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return 0, newer

    def meter(self) -> UtilizationMeter:
        return UtilizationMeter(self, None, lambda name, ask: Question(name, ask, set()))


def test_a_utilization_that_nothing_newer_follows_is_soon_unknown_and_never_taken_for_idle() -> None:
    driver = Samples()
    driver.add(0, age_us=200_000)
    driver.add(0, age_us=0)
    meter = driver.meter()
    now_ns = time.monotonic_ns()
    share = meter.look(now_ns)
    assert share is not None
    assert share.part == 0
    assert meter.look(now_ns + 2_000_000_000) is not None
    assert meter.look(now_ns + 3_100_000_000) is None


def test_samples_that_a_clock_set_back_has_stamped_are_found_again() -> None:
    driver = Samples()
    driver.add(0, age_us=-3_600_000_000)  # an hour ahead of the clock as it is now
    meter = driver.meter()
    now_ns = time.monotonic_ns()
    assert meter.look(now_ns) is not None
    driver.add(90, age_us=0)
    later_ns = now_ns + 3_100_000_000
    assert meter.look(later_ns) is None  # the driver gives nothing that is newer by its stamp
    share = meter.look(later_ns + 100_000_000)
    assert share is not None
    assert share.part == 0.9
    assert share.end_ns > share.begin_ns
