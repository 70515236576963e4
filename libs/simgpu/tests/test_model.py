"""The device model against schedules computed by hand (in C, with times of the tests' own)."""

import re
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("model_schedules.c")
NAMES = re.findall(r"^    TEST\((\w+)\)", SOURCE.read_text(), re.MULTILINE)


@pytest.mark.parametrize("name", NAMES)
def test_schedule(model_programs: Path, name: str) -> None:
    done = subprocess.run(
        [model_programs / "model_schedules", name], capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == 0, done.stderr


def test_every_schedule_is_run(model_programs: Path) -> None:
    listed = subprocess.run([model_programs / "model_schedules"], capture_output=True, text=True, check=True)
    assert listed.stdout.split() == NAMES
    written = re.findall(r"^static void (\w+)\(void\) \{", SOURCE.read_text(), re.MULTILINE)
    assert set(written) == set(NAMES)
