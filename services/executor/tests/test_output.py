from __future__ import annotations

from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from muxflow_executor.output import Piece, read_output


def write(directory: Path, segments: dict[int, bytes]) -> None:
    for path in directory.glob("output.*"):
        path.unlink()
    for offset, data in segments.items():
        (directory / f"output.{offset:016d}").write_bytes(data)


def test_newest_part_is_given_when_no_offset_is_asked_for(tmp_path: Path) -> None:
    write(tmp_path, {0: b"hello ", 6: b"world"})
    assert read_output(tmp_path, offset=None, limit_bytes=7) == Piece(data=b"o world", offset=4, end=11)


def test_reading_from_a_dropped_offset_begins_where_output_still_is(tmp_path: Path) -> None:
    write(tmp_path, {100: b"later"})
    assert read_output(tmp_path, offset=3, limit_bytes=10) == Piece(data=b"later", offset=100, end=105)


def test_reading_stops_before_a_gap_and_goes_on_behind_it(tmp_path: Path) -> None:
    write(tmp_path, {0: b"abc", 10: b"xyz"})
    first = read_output(tmp_path, offset=0, limit_bytes=100)
    assert first == Piece(data=b"abc", offset=0, end=3)
    assert read_output(tmp_path, offset=first.end, limit_bytes=100) == Piece(data=b"xyz", offset=10, end=13)


def test_offset_beyond_the_end_gives_nothing_and_the_end(tmp_path: Path) -> None:
    write(tmp_path, {0: b"abc"})
    assert read_output(tmp_path, offset=50, limit_bytes=10) == Piece(data=b"", offset=3, end=3)


def test_no_output_is_no_error(tmp_path: Path) -> None:
    assert read_output(tmp_path, offset=None, limit_bytes=10) == Piece(data=b"", offset=0, end=0)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    pieces=st.lists(st.tuples(st.integers(0, 5), st.binary(max_size=20)), max_size=3),
    limit_bytes=st.integers(1, 30),
)
def test_reading_on_from_each_end_gives_everything_once(
    tmp_path: Path, pieces: list[tuple[int, bytes]], limit_bytes: int
) -> None:
    segments: dict[int, bytes] = {}
    offset = 0
    for gap, data in pieces:
        offset += gap
        segments[offset] = segments.get(offset, b"") + data
        offset += len(data)
    write(tmp_path, segments)
    wanted = {base + place: byte for base, data in segments.items() for place, byte in enumerate(data)}
    got: dict[int, int] = {}
    position = 0
    while (piece := read_output(tmp_path, offset=position, limit_bytes=limit_bytes)).data:
        assert len(piece.data) <= limit_bytes
        assert piece.offset >= position
        got |= {piece.offset + place: byte for place, byte in enumerate(piece.data)}
        position = piece.end
    assert got == wanted
