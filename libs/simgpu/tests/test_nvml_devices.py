"""NVML through `pynvml`: which GPUs there are, what they are, how they fail."""

import inspect
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from muxflow_simgpu import SimulatedMachine, kinds

NOT_SUPPORTED = 3
GPU_IS_LOST = 15


def code_of(error: pytest.ExceptionInfo[Exception]) -> int:
    return int(error.value.value)  # type: ignore[attr-defined]


def test_without_a_directory_there_is_no_driver(nvml: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MUXFLOW_SIMGPU")
    with pytest.raises(nvml.NVMLError_DriverNotLoaded):
        nvml.nvmlInit()


def test_an_empty_directory_is_a_driver_without_gpus(nvml: ModuleType) -> None:
    nvml.nvmlInit()
    assert nvml.nvmlDeviceGetCount() == 0


def test_every_kind_says_what_it_is(nvml: ModuleType, machine: SimulatedMachine) -> None:
    devices = machine.start(*(kind.name for kind in kinds()))
    nvml.nvmlInit()
    assert nvml.nvmlDeviceGetCount() == len(devices)
    for kind, device in zip(kinds(), devices, strict=True):
        handle = nvml.nvmlDeviceGetHandleByIndex(device.index)
        assert nvml.nvmlDeviceGetName(handle) == kind.product
        assert nvml.nvmlDeviceGetUUID(handle) == device.uuid
        assert nvml.nvmlDeviceGetMemoryInfo(handle).total == kind.memory_bytes
        assert nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM) == kind.boost_mhz
        assert nvml.nvmlDeviceGetEnforcedPowerLimit(handle) == kind.limit_w * 1000
        assert nvml.nvmlGpmQueryDeviceSupport(handle).isSupportedDevice == kind.gpm


def test_a_gpu_is_found_by_each_of_its_names(nvml: ModuleType, machine: SimulatedMachine) -> None:
    machine.start("T4", "A100", "H200")
    nvml.nvmlInit()
    for index in range(3):
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        pci = nvml.nvmlDeviceGetPciInfo(handle)
        found = [
            nvml.nvmlDeviceGetHandleByUUID(nvml.nvmlDeviceGetUUID(handle)),
            nvml.nvmlDeviceGetHandleBySerial(nvml.nvmlDeviceGetSerial(handle)),
            nvml.nvmlDeviceGetHandleByPciBusId(pci.busId),
            nvml.nvmlDeviceGetHandleByPciBusId(pci.busIdLegacy),
        ]
        assert [nvml.nvmlDeviceGetIndex(other) for other in found] == [index] * len(found)
    with pytest.raises(nvml.NVMLError_NotFound):
        nvml.nvmlDeviceGetHandleByUUID("GPU-00000000-0000-0000-0000-000000000000")
    with pytest.raises(nvml.NVMLError_InvalidArgument):
        nvml.nvmlDeviceGetHandleByIndex(3)


def test_the_same_place_has_the_same_uuid_each_time(machine: SimulatedMachine) -> None:
    first = machine.start("T4", "T4")
    machine.stop()
    again = machine.start("T4", "T4")
    assert [device.uuid for device in first] == [device.uuid for device in again]
    assert first[0].uuid != first[1].uuid


def test_random_uuids_differ_each_time(machine: SimulatedMachine) -> None:
    first = machine.start("T4", random_uuids=True)
    machine.stop()
    assert first[0].uuid != machine.start("T4", random_uuids=True)[0].uuid


def test_an_idle_t4_rests_and_an_idle_a100_keeps_its_state(nvml: ModuleType, machine: SimulatedMachine) -> None:
    machine.start("T4", "A100")
    nvml.nvmlInit()
    t4, a100 = (nvml.nvmlDeviceGetHandleByIndex(index) for index in range(2))
    assert nvml.nvmlDeviceGetPerformanceState(t4) == 8
    assert nvml.nvmlDeviceGetPerformanceState(a100) == 0
    for handle in (t4, a100):
        assert nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM) <= 300
        assert nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle) == nvml.nvmlClocksThrottleReasonGpuIdle
        assert nvml.nvmlDeviceGetUtilizationRates(handle).gpu == 0


def test_memory_of_both_versions_adds_up(nvml: ModuleType, machine: SimulatedMachine) -> None:
    machine.start("T4")
    nvml.nvmlInit()
    handle = nvml.nvmlDeviceGetHandleByIndex(0)
    first = nvml.nvmlDeviceGetMemoryInfo(handle)
    second = nvml.nvmlDeviceGetMemoryInfo(handle, nvml.nvmlMemory_v2)
    assert first.used + first.free == first.total
    assert second.used + second.free + second.reserved == second.total
    assert second.used == 0
    assert first.used == second.reserved > 0


def test_a_wrong_structure_version_is_refused(nvml: ModuleType, machine: SimulatedMachine) -> None:
    machine.start("T4")
    nvml.nvmlInit()
    with pytest.raises(nvml.NVMLError) as error:
        nvml.nvmlDeviceGetMemoryInfo(nvml.nvmlDeviceGetHandleByIndex(0), version=nvml.nvmlMemory_v2 + (1 << 24))
    assert code_of(error) == nvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH


def test_what_a_kind_has_not_is_not_supported(nvml: ModuleType, machine: SimulatedMachine) -> None:
    machine.start("T4", "A100")
    nvml.nvmlInit()
    t4, a100 = (nvml.nvmlDeviceGetHandleByIndex(index) for index in range(2))
    assert nvml.nvmlDeviceGetMigMode(a100) == [0, 0]
    calls: tuple[Callable[[], object], ...] = (
        lambda: nvml.nvmlDeviceGetMigMode(t4),
        lambda: nvml.nvmlDeviceGetFanSpeed(t4),
        lambda: nvml.nvmlDeviceGetEccMode(t4),
        lambda: nvml.nvmlDeviceGetEncoderUtilization(t4),
        lambda: nvml.nvmlGpmSampleGet(t4, nvml.nvmlGpmSampleAlloc()),
    )
    for call in calls:
        with pytest.raises(nvml.NVMLError_NotSupported):
            call()


def calls_on_a_handle(nvml: ModuleType) -> list[str]:
    """Calls of pynvml that need nothing but a device."""
    return [
        name
        for name, function in inspect.getmembers(nvml, inspect.isfunction)
        if name.startswith("nvmlDevice")
        and [p.name for p in inspect.signature(function).parameters.values() if p.default is p.empty]
        in (["handle"], ["device"])
    ]


def test_every_call_of_pynvml_on_a_device_is_answered(nvml: ModuleType, machine: SimulatedMachine) -> None:
    machine.start("H200")
    nvml.nvmlInit()
    handle = nvml.nvmlDeviceGetHandleByIndex(0)
    codes = {}
    for name in calls_on_a_handle(nvml):
        codes[name] = 0
        try:
            getattr(nvml, name)(handle)
        except nvml.NVMLError as error:
            codes[name] = error.value
    answered = [name for name, code in codes.items() if code == 0]
    assert {code for code in codes.values() if code} <= {NOT_SUPPORTED}
    assert len(answered) > 50


def test_a_lost_gpu_is_lost_to_every_call_until_it_is_restored(nvml: ModuleType, machine: SimulatedMachine) -> None:
    machine.start("T4", "A100")
    nvml.nvmlInit()
    lost, other = (nvml.nvmlDeviceGetHandleByIndex(index) for index in range(2))
    machine.inject_xid(0, 79)
    calls: tuple[Callable[[], object], ...] = (
        lambda: nvml.nvmlDeviceGetName(lost),
        lambda: nvml.nvmlDeviceGetUtilizationRates(lost),
        lambda: nvml.nvmlDeviceGetMemoryInfo(lost),
        lambda: nvml.nvmlDeviceGetComputeRunningProcesses(lost),
        lambda: nvml.nvmlDeviceGetHandleByIndex(0),
    )
    for call in calls:
        with pytest.raises(nvml.NVMLError) as error:
            call()
        assert code_of(error) == GPU_IS_LOST
    assert nvml.nvmlDeviceGetCount() == 2
    assert nvml.nvmlDeviceGetName(other)
    machine.restore(0)
    assert nvml.nvmlDeviceGetName(lost) == "Tesla T4"


def test_an_injected_clock_drop_shows_with_its_reason(nvml: ModuleType, machine: SimulatedMachine) -> None:
    machine.start("A100")
    nvml.nvmlInit()
    handle = nvml.nvmlDeviceGetHandleByIndex(0)
    slow = nvml.nvmlClocksThrottleReasonHwThermalSlowdown
    machine.set_clock(0, 150, throttle_reasons=slow)
    assert nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM) == 150
    assert nvml.nvmlDeviceGetCurrentClocksEventReasons(handle) & slow
    machine.set_clock(0, None)
    assert not nvml.nvmlDeviceGetCurrentClocksEventReasons(handle) & slow


def test_an_event_set_hears_the_xids_of_its_devices_in_order(nvml: ModuleType, machine: SimulatedMachine) -> None:
    machine.start("T4", "A100", "H200")
    nvml.nvmlInit()
    handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(3)]
    machine.inject_xid(0, 31)  # before anybody listens
    events = nvml.nvmlEventSetCreate()
    for handle in handles[:2]:
        nvml.nvmlDeviceRegisterEvents(handle, nvml.nvmlEventTypeXidCriticalError, events)
    machine.inject_xid(2, 43)  # of no concern
    machine.inject_xid(1, 13)
    machine.inject_xid(1, 94)
    heard = [nvml.nvmlEventSetWait_v2(events, 1000) for _ in range(2)]
    assert [event.eventData for event in heard] == [13, 94]
    assert {nvml.nvmlDeviceGetIndex(event.device) for event in heard} == {1}
    assert heard[0].eventType == nvml.nvmlEventTypeXidCriticalError
    with pytest.raises(nvml.NVMLError_Timeout):
        nvml.nvmlEventSetWait_v2(events, 0)
    nvml.nvmlEventSetFree(events)


def test_a_waiter_is_woken_by_an_xid(nvml: ModuleType, machine: SimulatedMachine) -> None:
    machine.start("T4")
    nvml.nvmlInit()
    events = nvml.nvmlEventSetCreate()
    nvml.nvmlDeviceRegisterEvents(nvml.nvmlDeviceGetHandleByIndex(0), nvml.nvmlEventTypeXidCriticalError, events)
    heard: list[int] = []
    waiter = threading.Thread(target=lambda: heard.append(nvml.nvmlEventSetWait_v2(events, 20_000).eventData))
    waiter.start()
    machine.inject_xid(0, 43)
    waiter.join(timeout=10)
    assert heard == [43]


def test_a_lost_gpu_is_heard_of_and_then_ends_every_wait(nvml: ModuleType, machine: SimulatedMachine) -> None:
    machine.start("T4")
    nvml.nvmlInit()
    events = nvml.nvmlEventSetCreate()
    nvml.nvmlDeviceRegisterEvents(nvml.nvmlDeviceGetHandleByIndex(0), nvml.nvmlEventTypeXidCriticalError, events)
    machine.inject_xid(0, 79)
    assert nvml.nvmlEventSetWait_v2(events, 1000).eventData == 79
    with pytest.raises(nvml.NVMLError) as error:
        nvml.nvmlEventSetWait_v2(events, 20_000)
    assert code_of(error) == GPU_IS_LOST


def test_only_xids_can_be_listened_for(nvml: ModuleType, machine: SimulatedMachine) -> None:
    machine.start("T4")
    nvml.nvmlInit()
    handle = nvml.nvmlDeviceGetHandleByIndex(0)
    assert nvml.nvmlDeviceGetSupportedEventTypes(handle) == nvml.nvmlEventTypeXidCriticalError
    with pytest.raises(nvml.NVMLError_NotSupported):
        nvml.nvmlDeviceRegisterEvents(handle, nvml.nvmlEventTypePState, nvml.nvmlEventSetCreate())


def test_waiting_for_events_costs_next_to_nothing(nvml: ModuleType, machine: SimulatedMachine) -> None:
    machine.start("T4")
    nvml.nvmlInit()
    events = nvml.nvmlEventSetCreate()
    nvml.nvmlDeviceRegisterEvents(nvml.nvmlDeviceGetHandleByIndex(0), nvml.nvmlEventTypeXidCriticalError, events)
    before = time.process_time()
    with pytest.raises(nvml.NVMLError_Timeout):
        nvml.nvmlEventSetWait_v2(events, 500)
    assert time.process_time() - before < 0.1


def test_threads_may_ask_at_once(nvml: ModuleType, machine: SimulatedMachine) -> None:
    machine.start("T4", "H200")
    nvml.nvmlInit()
    handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(2)]
    answers: list[tuple[int, int, str]] = []

    def ask() -> None:
        for turn in range(300):
            handle = handles[turn % 2]
            used = nvml.nvmlDeviceGetMemoryInfo(handle, nvml.nvmlMemory_v2).used
            answers.append((used, nvml.nvmlDeviceGetUtilizationRates(handle).gpu, nvml.nvmlDeviceGetName(handle)))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for xid in range(100, 150):
        machine.inject_xid(0, xid)
    for thread in threads:
        thread.join(timeout=20)
    assert len(answers) == 4 * 300
    assert set(answers) == {(0, 0, "Tesla T4"), (0, 0, "NVIDIA H200")}


def test_every_opening_of_the_library_is_counted(nvml: ModuleType, machine: SimulatedMachine) -> None:
    machine.start("T4")
    nvml.nvmlInit()
    nvml.nvmlInit()
    handle = nvml.nvmlDeviceGetHandleByIndex(0)
    nvml.nvmlShutdown()
    assert nvml.nvmlDeviceGetName(handle)
    nvml.nvmlShutdown()
    with pytest.raises(nvml.NVMLError_Uninitialized):
        nvml.nvmlDeviceGetName(handle)


def test_a_process_has_its_command_as_name(nvml: ModuleType) -> None:
    nvml.nvmlInit()
    name = Path(nvml.nvmlSystemGetProcessName(os.getpid())).name
    assert name.startswith("python")
