"""``predict``: how fast a job would be beside each online service of a kind of GPU."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from muxflow.cli import output
from muxflow.cli.command import USAGE, CommandError, Session, command
from muxflow.cli.readings import UNKNOWN, percent

if TYPE_CHECKING:
    from muxflow.client import Client
    from muxflow.contracts import JobSpec, SpeedModel
    from muxflow.contracts.queries import Prediction, PredictReply

_COLUMNS: Final = ["BESIDE", "SM SHARE", "ONLINE", "SPEED", "FROM", "TO", "FITS", "MEASURED", "BASIS"]
_FILES: Final = (".yaml", ".yml", ".json")


def add_to(app: typer.Typer) -> None:
    """Add this command."""
    command(
        app,
        "muxflow predict resnet50-finetune --gpu A100",
        "muxflow predict examples/hello.yaml --gpu T4 --json | jq '.predictions[].speed'",
    )(predict)


async def predict(
    session: Session,
    *,
    job: Annotated[str, typer.Argument(metavar="JOB", help="Name of a submitted job, or a job file with one job.")],
    gpu: Annotated[str, typer.Option("--gpu", metavar="KIND", help="Kind of GPU, such as A100.")],
) -> None:
    """Tell how fast a job would be on a kind of GPU, alone and beside each online service there.

    SPEED is relative to running alone; one job in ten is slower than FROM, one in ten faster than TO. FITS is the
    probability that both fit into the memory. BASIS: measured (this pair was), model, or assumed (nothing is known, so
    it is a low guess). SM SHARE is what the job would get now.
    """
    async with session.connect() as client:
        spec = await _spec(client, job)
        reply = await client.predict(spec, gpu_kind=gpu)
    if session.as_json:
        output.json(reply)
        return
    output.table(_COLUMNS, [_row(each) for each in reply.predictions], wide=_COLUMNS[-1])
    for line in remarks(reply, spec):
        output.line(line)


async def _spec(client: Client, job: str) -> JobSpec:
    if Path(job).suffix not in _FILES:
        return (await client.job(job)).record.spec
    from muxflow import jobfile

    specs = jobfile.load(job)
    if len(specs) != 1:
        raise CommandError(f"{job}: {len(specs)} jobs; a prediction is of one", USAGE)
    return specs[0]


def _row(prediction: Prediction) -> list[output.Cell]:
    speed = prediction.speed
    return [
        prediction.workload or "nobody",
        percent(prediction.sm_share_pct),
        percent(prediction.online_activity_pct),
        percent(100 * speed.normalized_throughput),
        percent(100 * speed.low),
        percent(100 * speed.high),
        percent(100 * speed.fits_probability),
        UNKNOWN if prediction.measured is None else percent(100 * prediction.measured),
        speed.basis,
    ]


def remarks(reply: PredictReply, spec: JobSpec) -> list[str]:
    """Say what the figures stand on."""
    lines = []
    if len(reply.predictions) == 1:
        lines.append(f"no online service is known on {reply.gpu_kind}")
    if not reply.profiled:
        lines.append(
            f"{spec.name} was not measured alone on {reply.gpu_kind} yet: speeds beside services are low guesses"
        )
    lines.append(_model(reply.model))
    return lines


def _model(model: SpeedModel | None) -> str:
    if model is None:
        return "there is no model yet"
    error = f", mean error {100 * model.evaluation['mae']:.0f}%" if "mae" in model.evaluation else ""
    return (
        f"model {model.version}: {model.trained_rows} measurements on {model.measured_on or 'unknown devices'}"
        f"{error} on {model.held_out_rows} others"
    )
