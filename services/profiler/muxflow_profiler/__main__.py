"""``python -m muxflow_profiler``."""

from muxflow_profiler.service import Profiler
from muxflow_profiler.settings import ProfilerSettings


def main() -> None:
    """Run the profiler until a signal ends it."""
    Profiler.main(ProfilerSettings)


if __name__ == "__main__":
    main()
