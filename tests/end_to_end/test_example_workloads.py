"""The example workloads on simulated GPUs by themselves: their load, what they print, how they stop and go on."""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muxflow_simgpu import SimulatedMachine
from muxflow_simgpu.figures import percentile
from simulated_gpus import simulated
from workloads import WORKLOADS, until

DEADLINE_S = 30.0
MIB = 2**20
HELD = 512
"""MiB that a service is told to hold."""


def module(name: str) -> ModuleType:
    """Import a workload, which lies in no package."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", WORKLOADS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    found = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(WORKLOADS))  # they import one another, as scripts do
    try:
        spec.loader.exec_module(found)
    finally:
        sys.path.remove(str(WORKLOADS))
    return found


RATES, ONLINE = module("rates"), module("online_service")


class Program:
    """One run of a workload."""

    def __init__(
        self, gpus: SimulatedMachine, script: str, *arguments: str, env: Mapping[str, str] | None = None
    ) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(WORKLOADS / script), *arguments],
            env={**os.environ, **gpus.environment(), **(env or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def line(self) -> dict[str, Any]:
        """Wait for the next line that it prints."""
        assert self._process.stdout is not None
        text = self._process.stdout.readline()
        assert text, self._process.communicate()[1]
        return dict(json.loads(text))

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def end(self) -> list[dict[str, Any]]:
        """Wait until it has ended as it should; gives the lines that are left."""
        output, errors = self._process.communicate(timeout=DEADLINE_S)
        assert self._process.returncode == 0, errors
        return [json.loads(line) for line in output.splitlines()]

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


@contextlib.contextmanager
def running(*arguments: Any, **options: Any) -> Iterator[Program]:
    """Run a workload; nothing of it is left afterwards."""
    program = Program(*arguments, **options)
    try:
        yield program
    finally:
        program.kill()


@pytest.fixture(scope="module")
def gpus() -> Iterator[SimulatedMachine]:
    with simulated("A100") as machine:
        yield machine


# Rates

MODELS = st.builds(
    RATES.Model,
    mean_per_s=st.floats(0.5, 500),
    depth=st.floats(0, 0.99),
    day_s=st.floats(2, 2000),
    noise=st.floats(0, 1),
    noise_s=st.floats(0, 100),
    bursts_per_day=st.floats(0, 50),
    burst_factor=st.floats(1, 20),
    burst_s=st.floats(1, 100),
)
SEEDS = st.integers(0, 2**32)


def quiet(**fields: float) -> Any:
    """A model of nothing but the day."""
    return RATES.Model(**{"noise": 0.0, "bursts_per_day": 0.0, **fields})


@settings(deadline=None)
@given(MODELS, st.integers(1, 500), SEEDS)
def test_rates_have_the_mean_that_is_asked_for(model: Any, seconds: int, seed: int) -> None:
    made = RATES.rates(model, seconds=seconds, seed=seed)
    assert len(made) == seconds
    assert min(made) >= 0
    assert sum(made) / seconds == pytest.approx(model.mean_per_s, abs=0.001)


@settings(deadline=None)
@given(st.floats(0, 0.9), st.floats(1, 20), SEEDS)
def test_without_noise_rates_are_within_the_day_and_its_bursts(depth: float, factor: float, seed: int) -> None:
    model = quiet(depth=depth, burst_factor=factor, bursts_per_day=20.0, mean_per_s=1000.0)
    made = RATES.rates(model, seconds=1440, seed=seed)
    assert max(made) <= min(made) * (1 + depth) / (1 - depth) * factor + 0.1


@settings(deadline=None)
@given(st.floats(0.05, 0.9), st.integers(20, 400))
def test_days_follow_each_other_and_have_most_requests_at_noon(depth: float, day_s: int) -> None:
    made = RATES.rates(quiet(depth=depth, day_s=float(day_s), mean_per_s=1e5), seconds=2 * day_s, seed=1)
    assert made[:day_s] == pytest.approx(made[day_s:], abs=0.002)
    assert made.index(max(made)) % day_s == pytest.approx(day_s / 2, abs=1)
    assert made[0] == min(made)


@settings(max_examples=20, deadline=None)
@given(st.floats(2, 10), SEEDS)
def test_bursts_last_as_long_as_they_are_told_to_on_average(factor: float, seed: int) -> None:
    model = quiet(depth=0.0, bursts_per_day=60.0, burst_factor=factor, burst_s=8.0)
    made = RATES.rates(model, seconds=20_000, seed=seed)
    lowest = min(made)
    runs = [len(list(group)) for high, group in itertools.groupby(made, lambda rate: rate > lowest) if high]
    assert 6 < sum(runs) / len(runs) < 10  # a standard deviation is 0.3
    assert max(made) / lowest == pytest.approx(factor, rel=0.01)


@settings(max_examples=20, deadline=None)
@given(st.floats(0.05, 0.5), st.floats(0, 10), SEEDS)
def test_noise_is_as_wide_as_it_is_told_to_be(noise: float, noise_s: float, seed: int) -> None:
    made = RATES.rates(quiet(depth=0.0, noise=noise, noise_s=noise_s, mean_per_s=1e6), seconds=5000, seed=seed)
    logs = [math.log(rate) for rate in made]
    mean = sum(logs) / len(logs)
    assert math.sqrt(sum((each - mean) ** 2 for each in logs) / len(logs)) == pytest.approx(noise, rel=0.3)


@settings(deadline=None)
@given(MODELS, SEEDS)
def test_a_seed_gives_the_same_rates_again_and_another_seed_others(model: Any, seed: int) -> None:
    made = RATES.rates(model, seconds=50, seed=seed)
    assert RATES.rates(model, seconds=50, seed=seed) == made
    if model.noise > 0.1:
        assert RATES.rates(model, seconds=50, seed=seed + 1) != made


def test_the_committed_day_is_what_the_generator_makes() -> None:
    done = subprocess.run([sys.executable, WORKLOADS / "rates.py"], capture_output=True, text=True, check=True)
    assert (WORKLOADS / "rates-day.txt").read_text() == done.stdout
    assert len(ONLINE.read_rates(str(WORKLOADS / "rates-day.txt"))) == 1440


@pytest.mark.parametrize("option", ["--depth=2", "--burst-s=0", "--mean-per-s=0", "--noise=nan", "--seconds=-1"])
def test_nonsense_is_refused_by_the_option_that_says_it(option: str) -> None:
    done = subprocess.run([sys.executable, WORKLOADS / "rates.py", option], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert option.partition("=")[0] in done.stderr.splitlines()[-1]


# Arrivals


@settings(deadline=None)
@given(st.lists(st.floats(0, 200), min_size=1, max_size=20), st.floats(0.1, 10), st.floats(0.5, 10), SEEDS)
def test_requests_come_in_order_within_the_time_and_none_at_a_rate_of_nothing(
    rates_per_s: list[float], seconds: float, time_scale: float, seed: int
) -> None:
    times_s = list(ONLINE.arrivals(rates_per_s, seconds=seconds, seed=seed, time_scale=time_scale))
    assert times_s == sorted(times_s)
    assert all(0 <= at_s < seconds for at_s in times_s)
    numbers = {math.floor(at_s * time_scale + shift) for at_s in times_s for shift in (-1e-9, 1e-9)}
    assert all(any(rates_per_s[(number + near) % len(rates_per_s)] > 0 for near in (0, 1)) for number in numbers)


@settings(deadline=None)
@given(st.floats(0.5, 20), SEEDS)
def test_as_many_requests_come_as_the_rates_say_however_fast_they_pass(time_scale: float, seed: int) -> None:
    times_s = list(ONLINE.arrivals([50.0, 150.0], seconds=50, seed=seed, time_scale=time_scale))
    assert len(times_s) == pytest.approx(5000, rel=0.15)  # a standard deviation is 1.4%


# The online service


def test_a_service_says_each_second_and_at_its_end_how_it_went(gpus: SimulatedMachine, tmp_path: Path) -> None:
    log = tmp_path / "online.jsonl"
    load = ("--rates", str(WORKLOADS / "rates-day.txt"), "--time-scale", "360", "--rate-scale", "3", "--seconds", "2.5")
    words = ("--progress", "--memory-mib", str(HELD), "--log", str(log))
    with running(gpus, "online_service.py", *load, *words) as service:
        service.line()
        first = service.line()
        (client,) = (each for each in gpus.clients(0) if each.pid == service.pid)
        assert client.memory_bytes == HELD * MIB
        *others, last = service.end()
    told = [first, *others]
    seconds = [line["second"] for line in told]
    assert seconds == sorted(set(seconds))
    assert 1 < len(seconds) <= seconds[-1]  # a starved machine may tell of two at once
    requests = [json.loads(line) for line in log.read_text().splitlines()]
    assert 0 < sum(line["requests"] for line in told) <= last["requests"] == len(requests)
    assert {line["lost"] for line in (*told, last)} == {0}
    latencies_ms = [(each["done_ns"] - each["due_ns"]) / 1e6 for each in requests]
    assert last["p50_ms"] == pytest.approx(percentile(latencies_ms, 50), abs=0.001)
    assert last["p99_ms"] == pytest.approx(percentile(latencies_ms, 99), abs=0.001)


def test_the_wait_of_requests_counts_in_a_service_that_does_not_keep_up(gpus: SimulatedMachine) -> None:
    slow = ("--rate", "100", "--seconds", "0.5", "--kernels", "1", "--kernel-us", "20000")
    with running(gpus, "online_service.py", *slow) as service:
        last = service.end()[-1]
    waited_ms = 20 * last["requests"] - 500  # who came last, for all the others
    assert last["p99_ms"] > waited_ms / 2 > 2 * 20


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_service_that_is_stopped_answers_who_is_there_and_says_how_it_went(
    gpus: SimulatedMachine, tmp_path: Path, number: signal.Signals
) -> None:
    log = tmp_path / "online.jsonl"
    slow = ("--rate", "1000", "--kernels", "3", "--kernel-us", "50000", "--log", str(log))
    with running(gpus, "online_service.py", *slow) as service:
        service.line()
        until(lambda: any(client.unfinished for client in gpus.clients(0)), DEADLINE_S, "a request is under way")
        service.send(number)
        (last,) = service.end()
        served = [each for each in gpus.operations(0) if each.pid == service.pid]
    assert not any(each.cancelled for each in served)
    requests = [json.loads(line) for line in log.read_text().splitlines()]
    assert (last["requests"], last["lost"]) == (len(requests), 0)


def test_an_idle_service_stops_at_once(gpus: SimulatedMachine) -> None:
    with running(gpus, "online_service.py", "--rate", "0.001", "--seconds", "1000") as service:
        service.line()
        service.send(signal.SIGTERM)
        assert service.end() == [{"requests": 0, "p50_ms": None, "p99_ms": None, "lost": 0}]


@pytest.mark.parametrize("script", ["online_service.py", "offline_job.py"])
def test_where_there_is_no_gpu_a_workload_ends_with_one_line(gpus: SimulatedMachine, script: str) -> None:
    with running(gpus, script, env={"MUXFLOW_SIMGPU": ""}) as program:
        output, errors = program._process.communicate(timeout=DEADLINE_S)
    assert (program._process.returncode, output) == (1, "")
    (line,) = errors.splitlines()
    assert "CUDA_ERROR_NO_DEVICE" in line


# The offline job


@pytest.mark.parametrize(
    ("size", "sm_share", "bandwidth", "memory_mib"),
    [("small", 16 / 216, 0.0, 256), ("medium", 1.0, 0.0, 1024), ("large", 1.0, 0.9, 6144)],
)
def test_a_size_asks_of_the_gpu_what_it_says(
    gpus: SimulatedMachine, size: str, sm_share: float, bandwidth: float, memory_mib: int
) -> None:
    with running(gpus, "offline_job.py", "--size", size, "--batches", "1000000", "--report-s", "0.1") as job:
        job.line()
        assert job.line()["batch"] > 0
        (client,) = (each for each in gpus.clients(0) if each.pid == job.pid)
    assert client.memory_bytes == memory_mib * MIB
    kernel = next(each for each in gpus.operations(0) if each.pid == job.pid)
    assert kernel.sm_share == pytest.approx(sm_share, abs=0.001)
    assert kernel.bandwidth == pytest.approx(bandwidth)


def test_a_kernel_that_is_bound_by_memory_takes_as_long_as_its_bytes(gpus: SimulatedMachine) -> None:
    with running(gpus, "offline_job.py", "--size", "large", "--copy-mib", "32", "--batches", "2") as job:
        job.end()
        (gpu,) = gpus.devices()
        kernels = [each for each in gpus.operations(0) if each.pid == job.pid]
    assert len(kernels) == 40
    bandwidth_gbps = 1555  # of an A100
    assert gpu.kind == "A100"
    assert {round(each.work_ns) for each in kernels} == {round(2 * 32 * MIB / (0.9 * bandwidth_gbps))}


def test_a_job_saves_when_it_is_asked_to_and_goes_on_from_there(gpus: SimulatedMachine, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    env = {"MUXFLOW_CHECKPOINT_DIR": str(tmp_path), "MUXFLOW_CHECKPOINT_MARK": str(mark)}
    with running(gpus, "offline_job.py", "--batches", "1000000", "--save-every", "0", env=env) as job:
        assert job.line()["from_batch"] == 0
        job.send(signal.SIGUSR2)
        until(mark.exists, DEADLINE_S, "it has saved")
    saved = json.loads((tmp_path / "progress.json").read_text())["batches"]
    assert saved > 0
    with running(gpus, "offline_job.py", "--batches", str(saved + 3), env=env) as job:
        begin, end = job.end()
    assert (begin["from_batch"], end["batches"]) == (saved, 3)


def test_a_job_saves_every_so_many_batches_by_itself(gpus: SimulatedMachine, tmp_path: Path) -> None:
    env = {"MUXFLOW_CHECKPOINT_DIR": str(tmp_path)}
    file = tmp_path / "progress.json"
    with running(gpus, "offline_job.py", "--batches", "1000000", "--save-every", "7", env=env) as job:
        job.line()
        until(file.exists, DEADLINE_S, "it has saved")
    assert json.loads(file.read_text())["batches"] % 7 == 0
