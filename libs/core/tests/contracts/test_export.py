from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from muxflow.contracts import export

REPOSITORY = Path(__file__).parents[4]


def test_the_schemas_in_the_repository_are_up_to_date() -> None:
    assert export.drift(REPOSITORY / "schemas") == [], "repair it with: make schemas"


def test_every_process_writes_the_same_bytes(tmp_path: Path) -> None:
    for seed in ("1", "2"):
        subprocess.run(
            [sys.executable, "-m", "muxflow.contracts.export", "--output", tmp_path / seed],
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            timeout=30,
        )
    one, other = ({path.name: path.read_bytes() for path in (tmp_path / seed).iterdir()} for seed in ("1", "2"))
    assert one == other


def test_what_was_just_written_has_not_drifted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export.main(["--output", str(tmp_path)]) == 0
    assert export.main(["--output", str(tmp_path), "--check"]) == 0
    assert capsys.readouterr().err == ""


def test_a_check_names_what_drifted_and_the_command_that_repairs_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export.write(tmp_path)
    (tmp_path / "slo.schema.json").unlink()
    (tmp_path / "old.schema.json").write_text("{}")
    (tmp_path / "asyncapi.yaml").write_text("asyncapi: 2.6.0\n")
    assert export.main(["--output", str(tmp_path), "--check"]) == 1
    assert capsys.readouterr().err.splitlines() == [
        f"{tmp_path}/slo.schema.json: missing",
        f"{tmp_path}/old.schema.json: no such contract",
        f"{tmp_path}/asyncapi.yaml: out of date",
        f"Repair it with: python -m muxflow.contracts.export --output {tmp_path}",
    ]


def test_a_check_writes_nothing(tmp_path: Path) -> None:
    assert export.main(["--output", str(tmp_path / "none"), "--check"]) == 1
    assert not (tmp_path / "none").exists()


def test_writing_removes_schemas_without_a_contract_and_leaves_other_files(tmp_path: Path) -> None:
    (tmp_path / "old.schema.json").write_text("{}")
    (tmp_path / "README.md").write_text("hand-written")
    export.write(tmp_path)
    assert not (tmp_path / "old.schema.json").exists()
    assert (tmp_path / "README.md").read_text() == "hand-written"
