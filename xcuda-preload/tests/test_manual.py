"""The manual says what the library reads, and is a page that `man` can show."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOM = Path(__file__).parents[1]
MANUAL = ROOM / "xcuda.7"


def test_the_manual_has_every_variable_that_is_read_and_no_other() -> None:
    source = (ROOM / "src" / "settings.c").read_text()
    told = re.findall(r"^\.It Ev (XCUDA_\w+)$", MANUAL.read_text(), re.MULTILINE)
    assert sorted(told) == sorted(set(re.findall(r'getenv\("(XCUDA_\w+)"\)', source)))


def test_the_manual_has_the_directories_that_decide_in_a_container() -> None:
    source = (ROOM / "src" / "settings.c").read_text()
    directories = re.findall(r'#define CONTAINER_\w+ +"(.*)"', source)
    assert len(directories) == 2
    assert [path for path in directories if f".It Pa {path}" not in MANUAL.read_text()] == []


@pytest.mark.skipif(shutil.which("mandoc") is None, reason="mandoc is not installed")
def test_the_manual_is_well_formed() -> None:
    checked = subprocess.run(["mandoc", "-Tlint", "-Wwarning", MANUAL], capture_output=True, text=True, check=False)
    assert checked.stdout == ""
