"""Job files become specifications, or one line that names file, line, field and fix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from muxflow import jobfile
from muxflow.contracts import Checkpoint, GpuRequest, JobSpec, Mount
from muxflow.sizes import format_size, parse_size

GIB = 2**30
MINIMAL = "name: a\ncommand: [run]\ngpu: {memory: 1GiB}\n"


def test_every_key_of_a_job_file_arrives_in_the_specification() -> None:
    (spec,) = jobfile.parse("""
name: resnet50-finetune
tenant: vision
command: [python, train.py, --epochs, "3"]
image: null
env: {MODE: fast}
secrets: {TOKEN: hub-token}
workdir: /srv
mounts:
  - {source: /data, target: /data, read_only: true}
gpu: {memory: 8GiB, kinds: [T4, A100], count: 1}
profile_key: resnet50-bs32
priority: -5
checkpoint: {signal: SIGUSR2, grace_s: 30, every_s: 600}
retries: 2
stop_grace_s: 1.5
""")
    assert spec == JobSpec(
        name="resnet50-finetune",
        tenant="vision",
        command=("python", "train.py", "--epochs", "3"),
        env={"MODE": "fast"},
        secrets={"TOKEN": "hub-token"},
        workdir="/srv",
        mounts=(Mount(source="/data", target="/data", read_only=True),),
        gpu=GpuRequest(memory_bytes=8 * GIB, kinds=("T4", "A100")),
        profile_key="resnet50-bs32",
        priority=-5,
        checkpoint=Checkpoint(signal="SIGUSR2", grace_s=30, every_s=600),
        retries=2,
        stop_grace_s=1.5,
    )


def test_where_text_is_expected_numbers_and_words_stay_as_written() -> None:
    (spec,) = jobfile.parse(
        "name: 007\ncommand: [run, 3, 1.50, yes, 0x10, 2026-01-01]\nenv: {A: 010, B: off}\ngpu: {memory: 1GiB}"
    )
    assert spec.name == "007"
    assert spec.command == ("run", "3", "1.50", "yes", "0x10", "2026-01-01")
    assert spec.env == {"A": "010", "B": "off"}


def test_several_documents_are_several_jobs() -> None:
    specs = jobfile.parse(MINIMAL + "---\n" + MINIMAL.replace("name: a", "name: b") + "---\n")
    assert [spec.name for spec in specs] == ["a", "b"]


def test_a_file_is_read_from_disk_and_named_in_errors(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text(MINIMAL)
    bad.write_bytes(b"name: \xff")
    assert jobfile.load(good)[0].name == "a"
    with pytest.raises(jobfile.JobFileError, match=r"bad\.yaml: not UTF-8"):
        jobfile.load(bad)
    with pytest.raises(jobfile.JobFileError, match="No such file"):
        jobfile.load(tmp_path / "none.yaml")
    bad.write_text("#" * (jobfile.MAX_BYTES + 1))
    with pytest.raises(jobfile.JobFileError, match="larger than"):
        jobfile.load(bad)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# nothing\n", "job.yaml: holds no job"),
        ("- a", "job.yaml:1: a job is a table of keys: name, command, gpu"),
        ("name: a", "job.yaml:1: command is missing; write for example 'command: [python, train.py]'"),
        (MINIMAL + "gpuu: 1", "job.yaml:4: gpuu: unknown key; did you mean 'gpu'?"),
        (
            "name: a\ncommand: [run]\ngpu:\n  memry: 1GiB",
            "job.yaml:4: gpu.memry: unknown key; did you mean 'memory'?",
        ),
        (
            "name: a\ncommand: [run]\ngpu: {memory: 8}",
            "job.yaml:3: gpu.memory: '8' has no unit; write 8GiB, 8MiB or 8B",
        ),
        ("name: a\ncommand: [run]\ngpu: {memory: 0B}", "job.yaml:3: gpu.memory: expected a whole number >= 1"),
        ("name: a\ncommand: run\ngpu: {memory: 1GiB}", "job.yaml:2: command: expected a list, got text"),
        ("name: a\ncommand: []\ngpu: {memory: 1GiB}", "job.yaml:2: command: expected a list of length >= 1"),
        (
            "name: a b\ncommand: [run]\ngpu: {memory: 1GiB}",
            f"job.yaml:1: name: {jobfile.NAME_RULE}",
        ),
        (MINIMAL + "retries: few", "job.yaml:4: retries: expected a whole number, got text"),
        (MINIMAL + "workdir: src", "job.yaml:4: workdir: must be an absolute path on the node"),
        (MINIMAL + "workdir: ~/src", "job.yaml:4: workdir: must be an absolute path on the node"),
        (MINIMAL + "image: [a]", "job.yaml:4: image: expected text or nothing, got a list"),
        (MINIMAL + "env:\n  EMPTY:", 'job.yaml:5: env.EMPTY: must be text; for an empty value write ""'),
        (MINIMAL + "mounts:\n  - sourc: /a", "job.yaml:5: mounts[0].sourc: unknown key; did you mean 'source'?"),
        (
            MINIMAL + "checkpoint: {signal: SIGKILL}",
            "job.yaml:4: checkpoint.signal: must be SIGUSR1, SIGUSR2, SIGHUP or SIGRTMIN to SIGRTMIN+15",
        ),
        (MINIMAL + "name: b", "job.yaml:1: name: is given twice (again in line 4)"),
        (
            MINIMAL + "---\n" + MINIMAL,
            "job.yaml:5: name: 'a' is used twice in this file; job names are unique",
        ),
        ("name: [", "job.yaml:1: not valid YAML: expected the node content, but found '<stream end>'"),
        ("a: &loop [*loop]", "job.yaml:1: nested too deeply"),
        ("[" * 5000, "job.yaml: nested too deeply"),
    ],
)
def test_a_mistake_is_told_in_one_line_with_its_place_and_its_fix(text: str, message: str) -> None:
    with pytest.raises(jobfile.JobFileError) as error:
        jobfile.parse(text, name="job.yaml")
    assert str(error.value) == message


names = st.from_regex(r"\A[A-Za-z0-9]([A-Za-z0-9._-]{0,20}[A-Za-z0-9])?\Z")
texts = st.text(max_size=20)
sizes = st.integers(1, 2**20).map(lambda n: f"{n}MiB")
job_trees = st.fixed_dictionaries(
    {
        "name": names,
        "command": st.lists(texts, min_size=1, max_size=5),
        "gpu": st.fixed_dictionaries({"memory": sizes}, optional={"kinds": st.lists(st.sampled_from(["T4", "A100"]))}),
    },
    optional={
        "tenant": names,
        "env": st.dictionaries(st.from_regex(r"\A[A-Z_][A-Z0-9_]{0,9}\Z"), texts, max_size=4),
        "priority": st.integers(-1000, 1000),
        "retries": st.integers(0, 100),
        "stop_grace_s": st.floats(0, 3600),
    },
)


@given(job_trees)
def test_what_a_yaml_writer_wrote_is_what_is_submitted(tree: dict[str, Any]) -> None:
    (spec,) = jobfile.parse(yaml.safe_dump(tree))
    gpu = tree["gpu"]
    expected = {**tree, "gpu": {"memory_bytes": parse_size(gpu["memory"]), "kinds": gpu.get("kinds", [])}}
    assert spec == msgspec.convert(expected, JobSpec)


yaml_scraps = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
keys = st.sampled_from([field.encode_name for field in msgspec.structs.fields(JobSpec)] + ["memory", "", "x"])


@given(st.dictionaries(keys, yaml_scraps, max_size=8).map(yaml.safe_dump) | st.text(max_size=60))
@example("checkpoint:\n  ? 'a\n\n    b'\n  : null\n")
def test_whatever_stands_in_a_file_the_error_is_one_line(text: str) -> None:
    try:
        specs = jobfile.parse(text, name="job.yaml")
    except jobfile.JobFileError as error:
        message = str(error)
    else:
        assert all(spec.name and spec.command for spec in specs)
        return
    assert message.startswith("job.yaml")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("8GiB", 8 * GIB),
        ("8Gi", 8 * GIB),
        ("8G", 8 * 10**9),
        ("16 gb", 16 * 10**9),
        ("1.5GiB", 3 * GIB // 2),
        ("7B", 7),
    ],
)
def test_a_size_is_a_number_and_a_unit(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "8", "GiB", "-1GiB", "8GiBs", "8XB", "1e9B", "٣GiB", "1,5GiB"])
def test_anything_else_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match=r"write|known are"):
        parse_size(text)


@given(st.integers(0, 2**50))
def test_a_formatted_size_is_read_back_within_its_precision(size: int) -> None:
    assert abs(parse_size(format_size(size)) - size) <= size * 0.05
