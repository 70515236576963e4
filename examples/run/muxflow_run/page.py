"""``run.html``: a report for people, in one file that loads nothing. A function of the report."""

from __future__ import annotations

from pathlib import Path
from xml.etree.ElementTree import Element

from muxflow_run import plots
from muxflow_run.elements import element, table, written
from muxflow_run.report import PhaseFigures, PlacementFigures, Report, Verdict
from muxflow_run.summary import number, times


def render(report: Report) -> str:
    """Write the page."""
    body = element(
        "body",
        *_head(report),
        element("h2", "In all"),
        element("div", *plots.overview(report), class_="plots"),
        _services_table(report),
        _phases_table(report),
        element("h2", "Online latency over time"),
        element("div", *plots.latencies(report), class_="plots"),
        element("h2", "GPUs"),
        element("div", *plots.gpus(report), class_="plots"),
        _gpus_table(report),
        element("h2", "Jobs"),
        element("div", *plots.jobs(report), class_="plots"),
        *_job_tables(report.phases["protected"]),
        element("h2", "What was told"),
        *_told(report),
        element("h2", "How this was measured"),
        *_method(report),
        lang="en",
    )
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", "MuxFlow: one machine at work"),
        element("style", Path(__file__).with_name("page.css").read_text()),
    )
    return "<!doctype html>\n" + written(element("html", head, body, lang="en"))


# --- what is said first ---


def _head(report: Report) -> list[Element]:
    kinds = ", ".join(report.settings.gpus)
    badge = "SIMULATED GPUs: bounds for regressions, no claims" if report.simulated else "real GPUs"
    return [
        element("h1", "MuxFlow: one machine at work"),
        element("p", element("span", badge, class_="badge")),
        element(
            "p",
            f"Online services on {kinds}, alone, beside offline programs that nobody controls, and beside offline jobs "
            f"under MuxFlow; {report.settings.window_s:g} s each, with the same requests at the same times. Real "
            f"processes on {report.machine.cores} cores. {report.date}.",
            class_="quiet",
        ),
        element("ul", *(_verdict(verdict) for verdict in report.verdicts), class_="verdicts"),
    ]


def _verdict(verdict: Verdict) -> Element:
    word, style = {True: ("holds", "holds"), False: ("does not hold", "fails"), None: ("not measured", "")}[
        verdict.holds
    ]
    return element(
        "li",
        element("b", number(verdict.figure)),
        f"{verdict.promise}; bound {number(verdict.bound)}: ",
        element("strong", word),
        class_=style,
    )


def _services_table(report: Report) -> Element:
    phases = report.phases
    rows = []
    for place, service in enumerate(phases["alone"].services):
        for name, phase in phases.items():
            each = phase.services[place]
            rows.append(
                (
                    f"{service.service} on {service.gpu}, {plots.NAMES[name]}",
                    str(each.requests),
                    str(each.lost),
                    number(each.p50_ms),
                    number(each.p99_ms) + times(each.p99_ratio),
                    number(each.device_p50_ms),
                    number(each.device_p99_ms),
                )
            )
    head = ("service", "requests", "lost", "p50 ms", "p99 ms (times alone, 95%)", "GPU's part p50", "p99")
    return table(head, rows)


def _phases_table(report: Report) -> Element:
    rows = [
        (
            plots.NAMES[name],
            number(each.online_p99_ratio),
            number(each.online_device_p99_ratio),
            number(each.offline_share),
            number(each.normalized_throughput),
            number(each.jobs_done),
            f"{each.freezes}, {each.evictions}",
            f"{each.host.cpu_pct:.0f}%, {each.host.own_cpu_pct:.0f}%",
            "-" if each.host.starved_pct is None else f"{each.host.starved_pct:.0f}%",
        )
        for name, each in report.phases.items()
    ]
    head = (
        "phase",
        "p99 / alone",
        "GPU's part",
        "offline share",
        "throughput",
        "jobs done",
        "freezes, evictions",
        "CPU, of this run",
        "starved",
    )
    return table(head, rows)


def _gpus_table(report: Report) -> Element:
    rows = [
        (
            f"{gpu.gpu}, {plots.NAMES[name]}",
            number(gpu.utilization_pct),
            number(gpu.sm_activity_pct),
            number(gpu.memory_used_pct),
            number(gpu.online_activity_pct),
            number(gpu.offline_busy_pct),
            number(gpu.budget_pct),
            number(gpu.offline_share),
            number(gpu.normalized_throughput),
            f"{gpu.freezes}, {gpu.evictions}",
        )
        for place in range(len(report.settings.gpus))
        for name, gpu in ((name, phase.gpus[place]) for name, phase in report.phases.items())
    ]
    head = (
        *("GPU, means over the window", "utilization %", "SM activity %", "memory %", "online %", "offline busy %"),
        *("budget %", "offline share", "throughput", "freezes, evictions"),
    )
    return element("details", element("summary", "Table"), table(head, rows))


# --- jobs ---


def _job_tables(phase: PhaseFigures) -> list[Element]:
    placed = [
        (
            f"{each.job}#{each.attempt}",
            f"{each.gpu}{f', {each.service}' if each.service else ''}",
            each.purpose,
            f"{each.from_s:.1f} to {'-' if each.to_s is None else f'{each.to_s:.1f}'}",
            number(each.sm_share_pct),
            _predicted(each),
            f"{number(each.measured)}{f', {each.measured_by}' if each.measured_by else ''}",
            number(each.corun),
            number(each.work_per_s),
        )
        for each in phase.placements
    ]
    solved = [
        (
            f"{each.at_s:.1f} s, {each.trigger}",
            str(each.jobs),
            str(each.gpus),
            str(each.placed),
            str(each.moved),
            number(each.throughput),
            str(each.cost),
            str(each.bound),
            "proven best" if each.cost == each.bound else "NOT PROVEN",
            f"{each.solve_ms:.1f}",
        )
        for each in phase.solves
    ]
    placed_head = (
        "attempt",
        "GPU, service",
        "purpose",
        "s",
        "SM share %",
        "predicted",
        "measured",
        "co-run profile",
        "work per s",
    )
    solved_head = (*("solve", "jobs", "GPUs", "placed", "moved", "throughput", "cost", "bound", "certificate", "ms"),)
    return [
        element("details", element("summary", "Placements"), table(placed_head, placed)),
        element("p", f"Model of speeds: {_model(phase)}.", class_="quiet"),
        element(
            "details",
            element("summary", "Solves of the matching, and their certificates"),
            table(solved_head, solved) if solved else element("p", phase.missing.get("solves", "none"), class_="quiet"),
        ),
    ]


def _model(phase: PhaseFigures) -> str:
    if phase.model is None:
        return "none"
    figures = ", ".join(f"{name} {value:.3g}" for name, value in phase.model.evaluation.items())
    return (
        f"version {phase.model.version}, trained on {phase.model.trained_rows} pairs that were measured on "
        f"{phase.model.measured_on}; on {phase.model.held_out_rows} others: {figures}"
    )


def _predicted(each: PlacementFigures) -> str:
    if each.predicted is None:
        return "-"
    return f"{each.predicted:.2f} ({number(each.predicted_low)} to {number(each.predicted_high)}), {each.basis}"


# --- the rest ---


def _told(report: Report) -> list[Element]:
    found = []
    for name, phase in report.phases.items():
        items = [element("li", f"{each.at_s:.1f} s {each.gpu or ''}: {each.words}") for each in phase.happenings]
        if items:
            found.append(
                element(
                    "details",
                    element("summary", f"{plots.NAMES[name]}: {len(items)}"),
                    element("ul", *items, class_="told"),
                )
            )
    return found or [element("p", "nothing", class_="quiet")]


_LATENCY = (
    "Latency counts from when a request was due. Intervals are of a paired block bootstrap over seconds with the same "
    "requests. The GPU's part is the time of a request's kernels, from when each could run to its end, by the device's "
    "own log: what is beyond it is waiting in line, and what this machine's cores have cost."
)
_WORK = (
    "Offline share: offline work done, relative to what would be done alone in exactly the idle time of the online "
    "side. Normalized throughput: offline work done per second, relative to an undisturbed GPU."
)


def _method(report: Report) -> list[Element]:
    missing = [f"{name}: {why}" for phase in report.phases.values() for name, why in phase.missing.items()]
    said = [
        _LATENCY,
        _WORK,
        *(f"Phase {plots.NAMES[name]}: {phase.note}." for name, phase in report.phases.items()),
        f"Requests pass through a sample day at {report.settings.time_scale:g} times its speed.",
        *(f"Not known: {words}." for words in dict.fromkeys(missing)),
        *(f"Trouble: {words}." for words in report.troubles),
    ]
    versions = ", ".join(f"{name} {value}" for name, value in report.versions.items())
    return [
        *(element("p", words) for words in said),
        element("p", element("code", report.command)),
        element("p", f"{versions}; Python {report.machine.python}; {report.machine.kernel}", class_="quiet"),
    ]
