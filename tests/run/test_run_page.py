"""The page that a run writes, its plots, and the comparison of runs."""

from __future__ import annotations

import io
import re
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from muxflow_run import charts, compare, elements, page, phase, plots, report, summary, verdicts
from muxflow_run.host import Host
from seen_run import alone, beside

VOID = {"meta", "br"}


class Reader(HTMLParser):
    """Checks that every tag is closed where it must be, and keeps the texts."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.tags: list[str] = []
        self._open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def read(self, text: str) -> Reader:
        self.feed(text)
        self.close()
        assert not self._open
        return self


@pytest.fixture(scope="module")
def made() -> report.Report:
    """A run with all phases."""
    phases = {
        "alone": phase.figures(alone(), None),
        "unprotected": phase.figures(beside(6.0, work=1.0, lost=2), alone()),
        "protected": phase.figures(beside(2.1, work=0.4), alone()),
        "alone_again": phase.figures(alone(), alone()),
    }
    found = verdicts.figures(phases)
    return report.Report(
        simulated=True,
        date="2026-11-28T00:00:00+00:00",
        command="python examples/run",
        versions={"muxflow": "0"},
        machine=Host(cores=2, kernel="Linux", python="3.11"),
        settings=report.Settings(
            matching="predicted",
            prediction="on",
            dynamic_sm="on",
            window_s=10,
            time_scale=24,
            seed=1,
            gpus=("T4", "H200"),
            overrides=(),
        ),
        seconds=60,
        figures=found,
        verdicts=verdicts.verdicts(found),
        phases=phases,
        troubles=("<b>a trouble & more</b>",),
    )


def test_a_report_is_read_back_as_it_was_written(made: report.Report) -> None:
    assert report.decode(report.encode(made)) == made


def test_the_page_has_every_plot_and_says_that_it_was_simulated(made: report.Report) -> None:
    texts = " ".join(Reader().read(page.render(made)).texts)
    for title in (*plots.TITLES, "T4 #0: GPU utilization", "H200 #1: SM activity", "SIMULATED", "proven best"):
        assert title in texts


def test_the_page_loads_nothing_and_escapes_what_it_is_told(made: report.Report) -> None:
    text = page.render(made)
    assert not re.search(r"<(script|link|img|iframe)|\bsrc=|url\(|@import|https?://", text)
    assert "&lt;b&gt;a trouble &amp; more&lt;/b&gt;" in text


def test_the_summary_says_of_each_promise_whether_it_holds(made: report.Report) -> None:
    console = Console(file=io.StringIO(), width=160)
    summary.show(made, console)
    told = console.file.getvalue()  # type: ignore[attr-defined]
    assert told.count("holds") == len(made.verdicts)
    broken = msgspec.structs.replace(made.verdicts[0], holds=False)
    summary.show(msgspec.structs.replace(made, verdicts=(broken,)), console)
    assert "DOES NOT HOLD" in console.file.getvalue()  # type: ignore[attr-defined]


def test_runs_are_compared_side_by_side(made: report.Report, tmp_path: Path) -> None:
    other = msgspec.structs.replace(
        made, settings=msgspec.structs.replace(made.settings, overrides=("scheduler.prediction=false",))
    )
    for name, run in (("a", made), ("b", other)):
        (tmp_path / f"{name}.json").write_bytes(report.encode(run))
    console = Console(file=io.StringIO(), width=200)
    console.print(compare.table([tmp_path / "a.json", tmp_path / "b.json"]))
    told = console.file.getvalue()  # type: ignore[attr-defined]
    assert "scheduler.prediction=false" in told
    assert "defaults" in told


@given(most=st.floats(min_value=0, max_value=1e9), whole=st.booleans())
def test_an_axis_has_few_round_ticks_and_holds_its_values(most: float, whole: bool) -> None:
    drawn = charts.bars("t", "count" if whole else "ms", [("a", [charts.Bar("b", "one", most)])])
    labels = [float(text.text or "x") for text in drawn.iter("text") if text.get("class") == "end"]
    assert 2 <= len(labels) <= 7
    assert labels[0] == 0
    assert labels[-1] >= most * 0.99
    heights = [float(bar.get("height", "nan")) for bar in drawn.iter("rect")]
    assert all(0 <= height <= charts.HEIGHT for height in heights)


def test_a_gap_in_a_line_is_not_drawn_over() -> None:
    line = charts.Line("a", "one", ((0, 1.0), (1, None), (2, 3.0), (3, 4.0)))
    (path,) = (
        each for each in charts.lines("t", "ms", [line], seconds=3).iter("path") if "line" in each.get("class", "")
    )
    assert path.get("d", "").count("M") == 2


def test_a_plot_without_values_says_so() -> None:
    assert "nothing to show" in elements.written(charts.points("t", "u", []))


def test_texts_between_elements_stay_in_their_order() -> None:
    made = elements.element("p", "a ", elements.element("b", "c"), " d", " e", None, class_="x")
    assert elements.written(made) == '<p class="x">a <b>c</b> d e</p>'
