"""``python -m muxflow_evictor``."""

from muxflow_evictor.service import Evictor
from muxflow_evictor.settings import EvictorSettings


def main() -> None:
    """Run the evictor until a signal ends it."""
    Evictor.main(EvictorSettings)


if __name__ == "__main__":
    main()
