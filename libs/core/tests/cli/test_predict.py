from __future__ import annotations

from muxflow.cli import predict
from muxflow.contracts import GpuRequest, JobSpec, SpeedModel
from muxflow.contracts.queries import Prediction, PredictReply, Speed

SPEC = JobSpec(name="train", tenant="acme", command=("true",), gpu=GpuRequest(memory_bytes=1))
ALONE = Prediction(
    workload=None,
    sm_share_pct=None,
    speed=Speed(normalized_throughput=1, low=1, high=1, fits_probability=1, basis="measured"),
)
BESIDE = Prediction(
    workload="chat",
    sm_share_pct=40,
    online_activity_pct=21.4,
    speed=Speed(normalized_throughput=0.55, low=0.4, high=0.7, fits_probability=0.98, basis="model"),
    measured=0.6,
)
MODEL = SpeedModel(
    model="speed",
    version="v1",
    object_name="speed/v1",
    trained_rows=300,
    held_out_rows=60,
    evaluation={"mae": 0.047},
    measured_on="simulated GPUs",
)


def test_a_line_tells_speed_interval_share_fit_and_where_they_come_from() -> None:
    assert predict._row(BESIDE) == ["chat", "40%", "21%", "55%", "40%", "70%", "98%", "60%", "model"]
    assert predict._row(ALONE) == ["nobody", "-", "-", "100%", "100%", "100%", "100%", "-", "measured"]


def test_what_the_figures_stand_on_is_told() -> None:
    known = PredictReply(gpu_kind="A100", profiled=True, predictions=(ALONE, BESIDE), model=MODEL)
    assert predict.remarks(known, SPEC) == [
        "model v1: 300 measurements on simulated GPUs, mean error 5% on 60 others",
    ]
    unknown = PredictReply(gpu_kind="A100", profiled=False, predictions=(ALONE,))
    assert predict.remarks(unknown, SPEC) == [
        "no online service is known on A100",
        "train was not measured alone on A100 yet: speeds beside services are low guesses",
        "there is no model yet",
    ]
