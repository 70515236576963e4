from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from muxflow.contracts import golden
from muxflow.contracts.compatibility import release_tags
from muxflow.contracts.event import Count, Event
from muxflow.contracts.schemas import CONTRACTS

REPOSITORY = Path(__file__).parents[4]
GOLDEN = Path(__file__).parent / "golden"


class Note(Event, frozen=True, kw_only=True):
    text: str
    pages: tuple[Count, ...] = ()
    labels: dict[str, str] = {}


class NoteThatGrew(Event, frozen=True, kw_only=True):
    text: str
    pages: tuple[Count, ...] = ()
    labels: dict[str, str] = {}
    author: str = ""


class NoteThatLostItsLabels(Event, frozen=True, kw_only=True):
    text: str
    pages: tuple[Count, ...] = ()


class NoteThatNeedsAnAuthor(Event, frozen=True, kw_only=True):
    text: str
    pages: tuple[Count, ...] = ()
    labels: dict[str, str] = {}
    author: str


class Page(msgspec.Struct, frozen=True, kw_only=True):
    number: Count = 1


class NoteWithOtherPages(Event, frozen=True, kw_only=True):
    text: str
    pages: tuple[Page, ...] = ()
    labels: dict[str, str] = {}


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """Keep one note of a release."""
    folder = tmp_path / "v0.1.0"
    folder.mkdir()
    (folder / "note.json").write_bytes(b'{"id":"1","text":"hello","pages":[1,2],"labels":{"a":"b"}}')
    return folder


@pytest.mark.parametrize("kind", [Note, NoteThatGrew])
def test_old_bytes_are_understood_by_a_type_that_only_grew(kept: Path, kind: type[Event]) -> None:
    assert golden.misread(kept, {"note": kind}) == []


@pytest.mark.parametrize(
    ("kind", "problem"),
    [
        (NoteThatLostItsLabels, "$.labels is ignored or changed"),
        (NoteThatNeedsAnAuthor, "Object missing required field `author`"),
        (NoteWithOtherPages, "Expected `object`, got `int` - at `$.pages[0]`"),
    ],
)
def test_old_bytes_that_are_no_longer_understood_are_told(kept: Path, kind: type[Event], problem: str) -> None:
    assert golden.misread(kept, {"note": kind}) == [f"v0.1.0/note.json: {problem}"]


def test_a_value_that_is_lost_deep_inside_is_told(kept: Path) -> None:
    (kept / "note.json").write_bytes(b'{"text":"hello","pages":[{"number":1},{"number":2,"side":"left"}]}')
    assert golden.misread(kept, {"note": NoteWithOtherPages}) == [
        "v0.1.0/note.json: $.pages[1].side is ignored or changed"
    ]


def test_bytes_of_a_contract_that_is_gone_are_told(kept: Path) -> None:
    assert golden.misread(kept, {"letter": Note}) == ["v0.1.0/note.json: no contract has this name"]


def test_the_command_writes_every_contract_once_and_they_are_understood(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert golden.main(["--release", "0.1.0", "--output", str(tmp_path)]) == 0
    written = sorted(path.name for path in (tmp_path / "v0.1.0").iterdir())
    assert written == sorted(f"{contract.name}.json" for contract in CONTRACTS)
    assert golden.misread(tmp_path / "v0.1.0") == []
    assert capsys.readouterr().out == f"{tmp_path}/v0.1.0: {len(CONTRACTS)} files\n"


def test_golden_bytes_are_never_written_over(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        golden.main(["--release", "0.1.0", "--output", str(kept.parent)])
    assert stopped.value.code == 2
    assert f"{kept} exists: golden bytes of a release never change" in capsys.readouterr().err
    assert [path.name for path in kept.iterdir()] == ["note.json"]


@pytest.mark.parametrize("release", ["v0.1.0", "0.1", "../0.1.0", "latest"])
def test_a_release_is_named_by_its_version(tmp_path: Path, release: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        golden.main(["--release", release, "--output", str(tmp_path / "golden")])
    assert "not a version" in capsys.readouterr().err
    assert not (tmp_path / "golden").exists()


def test_the_command_writes_where_these_tests_look() -> None:
    assert REPOSITORY / golden.FOLDER == GOLDEN


def test_every_release_left_its_golden_bytes() -> None:
    tags = release_tags(REPOSITORY)
    if not tags:
        pytest.skip("no release yet")
    assert [tag for tag in tags if not (GOLDEN / tag).is_dir()] == []


def test_the_golden_bytes_of_every_release_are_understood() -> None:
    releases = sorted(GOLDEN.glob("v*"))
    if not releases:
        pytest.skip("no release yet")
    problems = [problem for kept in releases for problem in golden.misread(kept)]
    assert not problems, "\n".join(problems)
