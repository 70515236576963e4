"""``python -m muxflow_monitor``."""

from muxflow_monitor.service import Monitor
from muxflow_monitor.settings import MonitorSettings


def main() -> None:
    """Run the monitor until a signal ends it."""
    Monitor.main(MonitorSettings)


if __name__ == "__main__":
    main()
