"""What a run starts, and what it is told to do differently."""

from __future__ import annotations

import json

import msgspec
import pytest

from muxflow.contracts import JobSpec
from muxflow_run import cli, plan
from muxflow_run.by_hand import bare


def test_every_gpu_but_the_last_has_a_service_and_jobs_can_be_measured_there() -> None:
    planned = plan.plan(plan.KINDS, window_s=20, simulated=True)
    assert [gpu.service is not None for gpu in planned.gpus] == [True, True, True, False]
    assert len({service.name for _, service in planned.served}) == 3


def test_a_machine_with_one_gpu_serves_on_it() -> None:
    assert [gpu.service for gpu in plan.fleet(("H100",))] == [plan.SEARCH]


def test_more_gpus_than_services_stay_without_one() -> None:
    assert [gpu.service for gpu in plan.fleet(("H100",) * 5)] == [*plan.SERVICES, None, None]


def test_what_is_submitted_is_a_job_of_the_contract() -> None:
    planned = plan.plan(plan.KINDS, window_s=20, simulated=True)
    for job in planned.jobs:
        spec = msgspec.convert(json.loads(json.dumps(plan.spec(job))), JobSpec)
        assert spec.profile_key in {"small", "medium", "large"}
    assert len({job.name for job in planned.jobs}) == len(planned.jobs)


def test_a_service_begins_at_its_place_in_the_day() -> None:
    service = msgspec.structs.replace(plan.SEARCH, day_from_s=2)
    assert plan.rates(service, "# made by\n1.0\n2.0\n3.0\n") == [3.0, 1.0, 2.0]


def test_the_sample_day_is_long_enough_for_every_service() -> None:
    text = (plan.WORKLOADS / "rates-day.txt").read_text()
    assert {len(plan.rates(service, text)) for service in plan.SERVICES} == {1440}


def test_an_offline_program_by_hand_has_nothing_of_muxflow_in_its_environment() -> None:
    given = {"LD_PRELOAD": "libxcuda.so", "XCUDA_MODE": "beacon", "XCUDA_DEVICE_DIR": "d", "CUDA_VISIBLE_DEVICES": "0"}
    assert bare(given) == {"CUDA_VISIBLE_DEVICES": "0"}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], ()),
        (["--matching", "random"], ("scheduler.matching.weights=random",)),
        (["--prediction", "off"], ("scheduler.prediction=false",)),
        (["--dynamic-sm", "off"], ("scheduler.sm_share.fixed_pct=50",)),
        (["--matching", "memory", "--set", "lease.node_s=9"], ("scheduler.matching.weights=memory", "lease.node_s=9")),
    ],
)
def test_what_is_left_out_is_a_setting(words: list[str], expected: tuple[str, ...]) -> None:
    assert cli.overrides(cli.parsed(words)) == expected


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--seconds", "1"], "--seconds: 2 to 600"),
        (["--seconds", "soon"], "--seconds: invalid"),
        (["--gpus", "9"], "--gpus: invalid choice"),
        (["--matching", "best"], "--matching: invalid choice"),
        (["--nonsense"], "unrecognized arguments"),
    ],
)
def test_wrong_arguments_are_told(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.parsed(words)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
