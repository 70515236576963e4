"""What a run says at its end, on the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from muxflow_run.report import Interval, PhaseFigures, Report


def show(report: Report, console: Console) -> None:
    """Print the figures, and whether each promise holds."""
    console.print()
    what = "SIMULATED GPUs: bounds for regressions, no claims" if report.simulated else "real GPUs"
    console.print(Text(f"{what}; {report.machine.cores} cores, {report.seconds:.0f} s", style="bold"))
    console.print(_services(report))
    console.print(_phases(report))
    for verdict in report.verdicts:
        word, style = {True: ("holds", "green"), False: ("DOES NOT HOLD", "red"), None: ("not measured", "yellow")}[
            verdict.holds
        ]
        console.print(
            Text.assemble(
                (f"{word:>13}", style), f"  {verdict.promise}: {number(verdict.figure)} ({number(verdict.bound)})"
            )
        )
    for trouble in report.troubles:
        console.print(Text(f"trouble: {trouble}", style="red"))


def _services(report: Report) -> Table:
    table = Table(title="online p99, ms (times alone, 95% interval)", box=None, pad_edge=False, title_justify="left")
    table.add_column("service")
    for name in report.phases:
        table.add_column(name, justify="right")
    first = next(iter(report.phases.values()))
    for number_of, service in enumerate(first.services):
        cells = [
            f"{each.services[number_of].p99_ms or 0:.2f}{times(each.services[number_of].p99_ratio)}"
            for each in report.phases.values()
        ]
        table.add_row(f"{service.service} on {service.gpu}", *cells)
    return table


def _phases(report: Report) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for name in report.phases:
        table.add_column(name, justify="right")
    rows = {
        "online p99 / alone, median": lambda each: number(each.online_p99_ratio),
        "the GPU's part of it": lambda each: number(each.online_device_p99_ratio),
        "online requests, lost": lambda each: f"{each.online_requests}, {each.online_requests_lost}",
        "offline share of idle time": lambda each: number(each.offline_share),
        "normalized throughput per GPU": lambda each: number(each.normalized_throughput),
        "offline jobs done": lambda each: number(each.jobs_done),
        "freezes, evictions": lambda each: f"{each.freezes}, {each.evictions}",
        "host CPU, of this run, starved": _host,
    }
    for name, cell in rows.items():
        table.add_row(name, *(cell(each) for each in report.phases.values()))
    return table


def _host(each: PhaseFigures) -> str:
    starved = "-" if each.host.starved_pct is None else f"{each.host.starved_pct:.0f}%"
    return f"{each.host.cpu_pct:.0f}%, {each.host.own_cpu_pct:.0f}%, {starved}"


def number(value: float | None) -> str:
    """Say a figure; what is not known is ``-``."""
    if value is None:
        return "-"
    return f"{value:.0f}" if isinstance(value, int) or value == 0 else f"{value:.2f}"


def times(ratio: Interval | None) -> str:
    """Say a ratio and its interval in brackets; nothing where there is none."""
    return "" if ratio is None else f" ({ratio.ratio:.2f}, {ratio.low:.2f} to {ratio.high:.2f})"
