from __future__ import annotations

from pathlib import Path

import pytest

from muxflow.contracts import Gpu, OnlineAlert, SloReport
from muxflow_monitor.declared import Declared
from muxflow_monitor.reports import SloReports
from muxflow_monitor.settings import OnlineWorkload
from muxflow_monitor.workloads import DeclarationError, placed

GPUS = (
    Gpu(uuid="GPU-a", kind="T4", memory_bytes=1, index=0),
    Gpu(uuid="GPU-b", kind="T4", memory_bytes=1, index=1),
)
CHAT = OnlineWorkload(gpu=0, match="serve", latency_target_ms=20)


def report(latency_ms: float | None = 10, *, lost: int = 0, target_ms: float | None = None) -> SloReport:
    return SloReport(
        workload="chat",
        window_s=2,
        requests=100,
        lost=lost,
        latency_p99_ms=latency_ms,
        latency_target_ms=target_ms,
    )


# --- where workloads are


def test_a_workload_names_its_gpu_by_uuid_or_index() -> None:
    found = placed({"chat": CHAT, "search": OnlineWorkload(gpu="GPU-b", match="x")}, GPUS)
    assert {uuid: workload.name for uuid, workload in found.items()} == {"GPU-a": "chat", "GPU-b": "search"}


def test_an_index_may_be_written_as_text() -> None:
    assert placed({"chat": OnlineWorkload(gpu="1", match="x")}, GPUS)["GPU-b"].name == "chat"


def test_a_gpu_that_is_not_there_is_an_error_that_names_those_that_are() -> None:
    with pytest.raises(DeclarationError, match=r"online workload chat: there is no GPU 7 here; there are .*GPU-a"):
        placed({"chat": OnlineWorkload(gpu=7, match="x")}, GPUS)


def test_a_gpu_has_one_workload() -> None:
    with pytest.raises(DeclarationError, match="search: GPU GPU-a has chat already"):
        placed({"chat": CHAT, "search": OnlineWorkload(gpu="GPU-a", match="x")}, GPUS)


def test_processes_are_known_by_a_part_of_their_command_line() -> None:
    workload = placed({"chat": OnlineWorkload(gpu=0, match=r"serve(\.py)? --model")}, GPUS)["GPU-a"]
    assert workload.is_its("/usr/bin/python serve.py --model x")
    assert not workload.is_its("/usr/bin/python train.py")


# --- the file


def test_what_is_added_to_the_file_counts_when_it_changes(tmp_path: Path) -> None:
    file = tmp_path / "online.toml"
    declared = Declared({"chat": CHAT}, file, node="n")
    declared.read(GPUS)
    assert not declared.changed()
    file.write_text('[search]\ngpu = 1\nmatch = "index"\n')
    assert declared.changed()
    assert not declared.changed()
    assert [workload and workload.name for workload in map(declared.of, ("GPU-a", "GPU-b"))] == ["chat", "search"]
    file.unlink()
    assert declared.changed()
    assert declared.of("GPU-b") is None


def test_the_file_replaces_a_workload_of_the_settings_by_its_name(tmp_path: Path) -> None:
    file = tmp_path / "online.toml"
    file.write_text('[chat]\ngpu = 1\nmatch = "other"\n')
    declared = Declared({"chat": CHAT}, file, node="n")
    declared.read(GPUS)
    assert declared.of("GPU-a") is None
    assert declared.of("GPU-b") is not None


@pytest.mark.parametrize("text", ["[chat\n", "[chat]\ngpu = 0\n", '[chat]\ngpu = 0\nmatch = "("\n', "chat = 1\n"])
def test_a_file_that_is_wrong_is_an_error_that_names_it_and_changes_nothing(tmp_path: Path, text: str) -> None:
    file = tmp_path / "online.toml"
    declared = Declared({"chat": CHAT}, file, node="n")
    declared.read(GPUS)
    file.write_text(text)
    with pytest.raises(DeclarationError, match=r"online\.toml: "):
        declared.changed()
    assert declared.of("GPU-a") is not None


def test_reports_of_other_workloads_nodes_and_gpus_are_not_taken(tmp_path: Path) -> None:
    declared = Declared({"chat": CHAT}, tmp_path / "online.toml", node="n")
    declared.read(GPUS)
    elsewhere = [
        SloReport(workload="search", window_s=1, requests=1, latency_p99_ms=999),
        SloReport(workload="chat", node="other", window_s=1, requests=1, latency_p99_ms=999),
        SloReport(workload="chat", gpu="GPU-b", window_s=1, requests=1, latency_p99_ms=999),
    ]
    assert [declared.take(each) for each in elsewhere] == [None, None, None]
    assert declared.slo_ratio("chat") is None
    declared.take(report(10))
    assert declared.slo_ratio("chat") == pytest.approx(0.5)


# --- what services say of themselves


class Listener:
    def __init__(self) -> None:
        self.reports = SloReports("n")

    def take(self, report: SloReport, *, at_s: float = 0.0, target_ms: float | None = 20) -> OnlineAlert | None:
        return self.reports.take(report, gpu="GPU-a", target_ms=target_ms, now_s=at_s)


def test_the_ratio_is_latency_over_target_and_the_services_own_target_goes_first() -> None:
    listener = Listener()
    listener.take(report(30))
    assert listener.reports.ratio("chat", 0) == pytest.approx(1.5)
    listener.take(report(30, target_ms=60))
    assert listener.reports.ratio("chat", 0) == pytest.approx(0.5)


def test_without_a_target_or_a_latency_there_is_no_ratio() -> None:
    listener = Listener()
    listener.take(report(30), target_ms=None)
    assert listener.reports.ratio("chat", 0) is None
    listener.take(report(None))
    assert listener.reports.ratio("chat", 0) is None


def test_a_report_says_nothing_after_three_of_its_windows() -> None:
    listener = Listener()
    listener.take(report(10))
    assert listener.reports.ratio("chat", 5.9) == pytest.approx(0.5)
    assert listener.reports.ratio("chat", 6.1) is None


def test_a_service_that_begins_to_miss_its_target_alerts_once() -> None:
    listener = Listener()
    assert listener.take(report(19)) is None
    alert = listener.take(report(25), at_s=2)
    assert alert is not None
    assert alert.message == "p99 latency 25 ms, target 20 ms, over 2 s"
    assert (alert.workload, alert.gpu, alert.latency_p99_ms, alert.latency_target_ms) == ("chat", "GPU-a", 25, 20)
    assert listener.take(report(26), at_s=4) is None
    assert listener.take(report(15), at_s=6) is None
    assert listener.take(report(21), at_s=8) is not None


def test_lost_requests_alert_even_without_a_latency() -> None:
    alert = Listener().take(report(None, lost=3), target_ms=None)
    assert alert is not None
    assert alert.message == "3 of 100 requests lost, over 2 s"
