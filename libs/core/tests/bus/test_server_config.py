from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from muxflow.bus.credentials import generate_seed, public_key
from muxflow.bus.embedded import find_binary
from muxflow.bus.server_config import example_files, write

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
