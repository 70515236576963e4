from __future__ import annotations

import re
from pathlib import Path

from muxflow_device.cuda_errors import _STICKY, call_name, result_name

XCUDA = Path(__file__).parents[3] / "xcuda-preload/src"


def test_the_results_that_have_names_are_those_that_xcuda_notes() -> None:
    sticky = (XCUDA / "job.c").read_text().partition("is_sticky(CUresult result)")[2].partition("return true")[0]
    numbers = dict(re.findall(r"(CUDA_ERROR_\w+) = (\d+)", (XCUDA / "cuda_types.h").read_text()))
    noted = {int(numbers[name]): name for name in re.findall(r"case (CUDA_ERROR_\w+)", sticky)}
    assert noted == {code: result_name(code) for code in _STICKY}


def test_a_result_without_a_name_keeps_its_number() -> None:
    assert result_name(12_345) == "CUDA error 12345"


def test_calls_are_named_by_their_place_in_the_table_of_hooks() -> None:
    assert call_name(0) == "cuLaunchKernel"
    assert call_name(2**32 - 1) == ""
