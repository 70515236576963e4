"""What NVML tells of memory in a job: the quota on the job's GPU, on others and elsewhere what it always tells."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import GpuNode

_MIB = 1 << 20

_ASK = """
import pynvml

pynvml.nvmlInit()

def handle(index):
    return pynvml.nvmlDeviceGetHandleByIndex(index)

def told(device):
    first = pynvml.nvmlDeviceGetMemoryInfo(device)
    second = pynvml.nvmlDeviceGetMemoryInfo(device, version=pynvml.nvmlMemory_v2)
    return [n >> 20 for n in (first.total, first.free, first.used, second.total, second.free, second.used)]
"""


@pytest.fixture
def job(bare_gpu_node: GpuNode) -> GpuNode:
    """A job on the second of three devices."""
    bare_gpu_node.machine.start("T4", "A100")
    bare_gpu_node.begin_job(quota_bytes=1000 * _MIB, context_bytes=300 * _MIB, gpu=bare_gpu_node.machine.device(1).uuid)
    return bare_gpu_node


def test_the_jobs_gpu_is_as_large_as_the_quota_and_others_are_as_they_are(job: GpuNode) -> None:
    program = _ASK + "for i in (0, 1, 2): print(told(handle(i)))"
    ours, real = (job.output_of(program, preload=preload).splitlines() for preload in (True, False))
    assert ours[1] == "[1000, 1000, 0, 1000, 1000, 0]"
    assert (ours[0], ours[2]) == (real[0], real[2])


def test_what_all_processes_of_the_job_hold_is_what_is_used(job: GpuNode) -> None:
    holding = job.python("from driver import *\nbegin()\nallocate(100 << 20)\nsay('held')\ninput()\n")
    assert job.hear(holding) == "held"
    asking = _ASK + "from driver import *\nbegin()\nallocate(50 << 20)\nprint(told(handle(1)))"
    assert job.output_of(asking).strip() == "[1000, 250, 750, 1000, 250, 750]"


def test_less_is_free_than_the_quota_says_where_the_device_has_no_more(job: GpuNode) -> None:
    stranger = job.python(
        """
        from driver import *
        call("cuInit", c_uint(0))
        context = c_void_p()
        call("cuDevicePrimaryCtxRetain", byref(context), 1)
        call("cuCtxSetCurrent", context)
        allocate(memory_info()[0] - (200 << 20))
        say("held")
        input()
        """,
        preload=False,
    )
    assert job.hear(stranger) == "held"
    assert job.output_of(_ASK + "print(told(handle(1)))").strip() == "[1000, 200, 0, 1000, 200, 0]"


def test_errors_are_nvmls_own(job: GpuNode) -> None:
    program = """
        import ctypes
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
        memory = (ctypes.c_ulonglong * 5)()
        device = ctypes.c_void_p()
        print(nvml.nvmlDeviceGetMemoryInfo(device, memory))
        nvml.nvmlInit_v2()
        nvml.nvmlDeviceGetHandleByIndex_v2(1, ctypes.byref(device))
        for call in (nvml.nvmlDeviceGetMemoryInfo, nvml.nvmlDeviceGetMemoryInfo_v2):
            print(call(device, None), call(None, memory))
        print(nvml.nvmlDeviceGetMemoryInfo_v2(device, memory), *memory)
        nvml.nvmlShutdown()
        print(nvml.nvmlDeviceGetMemoryInfo(device, memory))
    """
    assert job.output_of(program) == job.output_of(program, preload=False)


@pytest.mark.parametrize("preload", [False, True])
def test_nvml_is_found_where_the_program_has_loaded_it_and_only_there(job: GpuNode, preload: bool) -> None:
    program = """
        import ctypes
        program = ctypes.CDLL(None)
        try:
            program.nvmlDeviceGetMemoryInfo
        except AttributeError as error:
            print("undefined symbol" in str(error))
        ctypes.CDLL("libnvidia-ml.so.1", mode=ctypes.RTLD_GLOBAL)
        print(program.nvmlDeviceGetMemoryInfo(None, None) != 0)
    """
    assert job.output_of(program, preload=preload).split() == ["True", "True"]


def test_a_job_without_a_quota_sees_the_whole_device(bare_gpu_node: GpuNode) -> None:
    bare_gpu_node.begin_job(gpu=bare_gpu_node.machine.device(0).uuid)
    program = _ASK + "print(told(handle(0)))"
    assert bare_gpu_node.output_of(program) == bare_gpu_node.output_of(program, preload=False)
