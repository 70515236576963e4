"""``python -m muxflow_predictor``."""

from muxflow_predictor.service import Predictor
from muxflow_predictor.settings import PredictorSettings


def main() -> None:
    """Run the predictor until a signal ends it."""
    Predictor.main(PredictorSettings)


if __name__ == "__main__":
    main()
