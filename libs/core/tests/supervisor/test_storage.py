"""How much of a disk the server's store may take."""

from __future__ import annotations

from pathlib import Path

import pytest

from muxflow.contracts.catalogue import GIB, MIB, STREAMS
from muxflow.supervisor import storage
from muxflow.supervisor.storage import StorageError


class Usage:
    def __init__(self, total: int, free: int) -> None:
        self.total, self.free = total, free


def on_disk(monkeypatch: pytest.MonkeyPatch, *, total: int, free: int) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage(total, free))


def streams_bytes(scale: float) -> float:
    return sum(stream.max_bytes for stream in STREAMS if stream.storage == "file") * scale


@pytest.mark.parametrize("max_bytes", [32 * MIB, 57 * MIB, GIB, 10 * GIB, 64 * GIB])
def test_streams_take_at_most_half_and_no_less_than_a_quarter_of_it(max_bytes: int) -> None:
    sized = storage.size(max_bytes)
    assert streams_bytes(sized.streams_scale) <= max_bytes / 2
    assert sized.streams_scale == 1 or streams_bytes(sized.streams_scale) > max_bytes / 4


def test_a_large_disk_changes_no_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_disk(monkeypatch, total=1000 * GIB, free=500 * GIB)
    assert storage.plan(tmp_path, None) == storage.Storage(max_bytes=64 * GIB, streams_scale=1)


def test_a_reserve_is_left_to_others_and_what_the_store_holds_counts_as_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_disk(monkeypatch, total=100 * GIB, free=11 * GIB)
    assert storage.plan(tmp_path, None).max_bytes == 10 * GIB
    (tmp_path / "held").write_bytes(bytes(MIB))
    assert 10 * GIB + MIB <= storage.plan(tmp_path, None).max_bytes <= 10 * GIB + 2 * MIB


def test_a_store_never_shrinks_and_grows_with_its_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_disk(monkeypatch, total=100 * GIB, free=11 * GIB)
    before = storage.plan(tmp_path, None)
    on_disk(monkeypatch, total=100 * GIB, free=2 * GIB)
    assert storage.plan(tmp_path, before) == before
    on_disk(monkeypatch, total=100 * GIB, free=31 * GIB)
    assert storage.plan(tmp_path, before).max_bytes == 30 * GIB


def test_too_little_room_is_told_with_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_disk(monkeypatch, total=100 * GIB, free=GIB + 31 * MIB)
    with pytest.raises(StorageError, match=r"1GiB are free on its disk, .* needs 1GiB; free some space"):
        storage.plan(tmp_path, None)


def test_room_is_found_by_writing(tmp_path: Path) -> None:
    assert storage.has_room(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert not storage.has_room(tmp_path / "missing")
