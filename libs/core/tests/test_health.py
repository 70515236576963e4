from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry, Counter

from muxflow import health as health_module
from muxflow.health import Health, HealthServer


@pytest.fixture
def health() -> Health:
    return Health(CollectorRegistry())


@pytest.fixture
def server(health: Health) -> Iterator[HealthServer]:
    server = HealthServer(health, host="127.0.0.1", port=0)
    yield server
    server.close()


def get(server: HealthServer, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_a_process_is_ready_when_every_check_is_content(health: Health, server: HealthServer) -> None:
    health.require("bus", lambda: None)
    assert get(server, "/readyz") == (200, "ok\n")
    health.require("lease", lambda: "expired")
    assert get(server, "/readyz") == (503, "lease: expired\n")
    assert get(server, "/healthz") == (200, "ok\n")


def test_a_silent_event_loop_fails_the_liveness_check(
    health: Health, server: HealthServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health_module, "STALE_S", -1.0)
    status, text = get(server, "/healthz")
    assert status == 503
    assert "event loop silent" in text


def test_metrics_are_those_of_this_process(health: Health, server: HealthServer) -> None:
    Counter("muxflow_drops", "Drops.", registry=health.registry).inc(3)
    status, text = get(server, "/metrics")
    assert status == 200
    assert "muxflow_drops_total 3.0" in text


def test_an_unknown_path_is_told_what_is_known(server: HealthServer) -> None:
    assert get(server, "/nothing") == (404, "known are /healthz, /readyz and /metrics\n")


def test_a_taken_port_is_an_error(health: Health, server: HealthServer) -> None:
    with pytest.raises(OSError, match="in use"):
        HealthServer(health, host="127.0.0.1", port=server.port)
