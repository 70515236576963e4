"""``python -m muxflow_executor``."""

from muxflow_executor.service import Executor
from muxflow_executor.settings import ExecutorSettings


def main() -> None:
    """Run the executor until a signal ends it."""
    Executor.main(ExecutorSettings)


if __name__ == "__main__":
    main()
