"""``python -m muxflow_scheduler``."""

from muxflow_scheduler.service import Scheduler
from muxflow_scheduler.settings import SchedulerSettings


def main() -> None:
    """Run the scheduler until a signal ends it."""
    Scheduler.main(SchedulerSettings)


if __name__ == "__main__":
    main()
