from __future__ import annotations

import pynvml
import pytest

from muxflow_device.faults import XIDS, Reach, describe
from muxflow_device.nvml import VERSION_MISMATCH, Trouble, meaning


@pytest.mark.parametrize(
    ("code", "trouble"),
    [
        (pynvml.NVML_ERROR_NOT_SUPPORTED, Trouble.UNSUPPORTED),
        (pynvml.NVML_ERROR_NO_PERMISSION, Trouble.UNSUPPORTED),
        (pynvml.NVML_ERROR_FUNCTION_NOT_FOUND, Trouble.UNSUPPORTED),
        (pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH, Trouble.UNSUPPORTED),
        (pynvml.NVML_ERROR_DEPRECATED, Trouble.UNSUPPORTED),
        (pynvml.NVML_ERROR_NOT_FOUND, Trouble.NOTHING),
        (pynvml.NVML_ERROR_NO_DATA, Trouble.NOTHING),
        (pynvml.NVML_ERROR_GPU_IS_LOST, Trouble.LOST),
        (pynvml.NVML_ERROR_RESET_REQUIRED, Trouble.LOST),
        (pynvml.NVML_ERROR_GPU_NOT_FOUND, Trouble.LOST),
        (pynvml.NVML_ERROR_UNINITIALIZED, Trouble.DRIVER),
        (pynvml.NVML_ERROR_DRIVER_NOT_LOADED, Trouble.DRIVER),
        (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, Trouble.DRIVER),
        (pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, Trouble.DRIVER),
        (pynvml.NVML_ERROR_UNKNOWN, Trouble.FAILED),
        (pynvml.NVML_ERROR_TIMEOUT, Trouble.FAILED),
        (12345, Trouble.FAILED),
    ],
)
def test_each_error_of_nvml_means_one_thing(code: int, trouble: Trouble) -> None:
    assert meaning(code) is trouble


def test_a_changed_driver_is_known_by_its_number() -> None:
    assert pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH == VERSION_MISMATCH


def test_an_applications_fault_is_contained_unless_the_gpu_is_shared() -> None:
    assert describe(31).contained(shared=False) is True
    assert describe(31).contained(shared=True) is False


def test_a_fault_of_the_device_is_fatal_and_contained_for_nobody() -> None:
    assert describe(79).fatal
    assert describe(79).contained(shared=False) is False


def test_a_report_hurts_nobody() -> None:
    assert not describe(45).fatal
    assert describe(45).contained(shared=True) is True


def test_an_xid_that_is_in_no_table_is_taken_for_an_applications() -> None:
    assert 999 not in XIDS
    assert describe(999).reach is Reach.APPLICATION
