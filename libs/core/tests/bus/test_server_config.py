from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from muxflow.bus.credentials import Principal, generate_seed, public_key
from muxflow.bus.embedded import find_binary
from muxflow.bus.server_config import example_files, main, write
from muxflow.contracts import Role

INFRA = Path(__file__).parents[4] / "infra" / "nats"


def test_the_files_in_infra_are_what_the_catalogue_says_today() -> None:
    committed = {
        str(path.relative_to(INFRA)): path.read_text()
        for path in INFRA.rglob("*")
        if path.is_file() and path.name != "README.md"
    }
    assert committed == example_files(), "write them anew: python -m muxflow.bus.server_config --write infra/nats"


@pytest.mark.parametrize("name", [name for name in example_files() if name.endswith(".example")])
def test_the_server_accepts_every_example(name: str, tmp_path: Path) -> None:
    write(tmp_path, example_files())
    text = (tmp_path / name).read_text()
    text = re.sub(r"REPLACE_WITH_PUBLIC_KEY_OF_[\w-]+", lambda _: public_key(generate_seed()), text)
    text = re.sub(r"tls \{.*?\}", "", text, flags=re.DOTALL)  # its files are the site's
    config = tmp_path / "server.conf"
    config.write_text(text)
    checked = subprocess.run([find_binary(), "-t", "-c", config], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr


def test_the_command_writes_a_configuration_for_the_principals_one_has(tmp_path: Path) -> None:
    main(["--write", str(tmp_path), "scheduler", "node-n=2E1", "user-acme", "user-n=2E1"])
    text = (tmp_path / "single.conf.example").read_text()
    assert '{service: "muxflow.jobs.submit.n=2E1.*", accounts: ["user-n=2E1"]}' in text
    assert "user-default" not in text
    assert {path.stem for path in (tmp_path / "permissions").iterdir()} == {
        "scheduler",
        "node-n=2E1",
        "user-acme",
        "user-n=2E1",
    }


@pytest.mark.parametrize("name", ["somebody", "scheduler-x", "user", "user-a=ZZ", ""])
def test_a_name_that_is_no_principal_is_refused(name: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - of three origins, each with its own words
        Principal.named(name)


def test_a_principal_is_found_by_its_name() -> None:
    for principal in (Principal(role=Role.OBSERVER), Principal(role=Role.USER, bound_to="a.b-c d")):
        assert Principal.named(principal.name) == principal
