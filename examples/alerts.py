"""Watch over the alerts of a cluster, as whoever is on call does: one line for each, as it comes.

Uses the `observer` credentials that `muxflow up` made, which may read and nothing else; --credentials names others. It
outlasts restarts of the server, and misses nothing meanwhile: alerts are kept for seven days.

    python examples/alerts.py --since 60
    python examples/alerts.py --json | while read -r alert; do notify "$alert"; done
"""

import argparse
import asyncio
import signal
import sys
import time
from pathlib import Path

import msgspec

from muxflow import discovery
from muxflow.client import Client, ClientError, Received
from muxflow.contracts import EvictionAlert, OnlineAlert, Role


async def watch(credentials: Path, *, since_s: float, follow: bool, as_json: bool) -> None:
    """Print alerts, oldest first."""
    async with Client.connect(credentials=credentials) as client:
        async for received in client.alerts(since_s=since_s, follow=follow):
            print(msgspec.json.encode(received).decode() if as_json else line(received), flush=True)


def line(received: Received) -> str:
    """Say an alert in one line: when, whom it is about, what is the matter."""
    match received.event:
        case EvictionAlert() as alert:
            progress = "going" if alert.total_ms is None else f"gone in {alert.total_ms:.0f} ms"
            words = f"{alert.tenant}/{alert.job} evicted from {alert.gpu}, {progress}: {alert.cause}"
        case OnlineAlert() as alert:
            words = f"{alert.workload}: {alert.message}"
        case alert:
            words = f"{alert.severity}: {alert.gpu}: {alert.message}"
    at = time.strftime("%F %T", time.localtime(received.time_ns / 1e9))
    return f"{at} {received.names['node']} {words}"


def observer() -> Path:
    """Find the observer's credentials in the state directory of `muxflow up`. Raises `DiscoveryError`."""
    path = next(each.path for each in discovery.machine().credentials if each.role is Role.OBSERVER)
    return discovery.state_dir() / path


def main() -> None:
    """Read the command line, and watch until Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--since", type=float, default=0.0, metavar="MINUTES", help="begin so long ago (default: now)")
    parser.add_argument("--once", action="store_true", help="end when all that there were are told")
    parser.add_argument("--json", action="store_true", help="print each alert as JSON, with all that is known of it")
    parser.add_argument("--credentials", type=Path, help="file of an observer's or operator's credentials")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        watching = watch(
            options.credentials or observer(),
            since_s=options.since * 60,
            follow=not options.once,
            as_json=options.json,
        )
        asyncio.run(watching)
    except KeyboardInterrupt:
        return
    except (ClientError, discovery.DiscoveryError) as error:
        sys.exit(str(error))  # one line that says how to put it right


if __name__ == "__main__":
    main()
