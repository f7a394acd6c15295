"""Write a climb into an experiment tracker: MLflow, Weights & Biases, or TensorBoard.

Each measured rung becomes a run with its settings, its figures and its training loss. The trackers' own settings apply,
such as MLFLOW_TRACKING_URI and WANDB_MODE.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from rung.errors import MachineError
from rung.evaluation.result import ClimbResult, RungResult

Tracker = Literal["mlflow", "wandb", "tensorboard"]
_MODULES = {"mlflow": "mlflow", "wandb": "wandb", "tensorboard": "torch.utils.tensorboard"}
_FIGURES = (
    "score", "low", "high", "n", "price_per_1000", "seconds_per_row", "fit_seconds", "tokens", "trainable_parameters",
)  # fmt: skip


def library(tracker: Tracker) -> Any:
    """Import a tracker's library; raise MachineError `missing-extra` if it is not installed."""
    try:
        return import_module(_MODULES[tracker])
    except ImportError as missing:
        hint = f"uv pip install {tracker}"
        raise MachineError("missing-extra", f"--track {tracker} needs {tracker}", hint=hint) from missing


def track(result: ClimbResult, folder: Path, tracker: Tracker) -> str:
    """Write the measured rungs of a climb into a tracker; return where they are.

    Args:
        result: the climb's result.
        folder: its run folder; TensorBoard's files are written below it, and the others attach its report.
        tracker: which tracker.

    Raises:
        MachineError: `missing-extra`: its library is not installed.
    """
    tool = library(tracker)
    rungs = [rung for rung in result.rungs if rung.score is not None]
    return {"mlflow": _mlflow, "wandb": _wandb, "tensorboard": _tensorboard}[tracker](tool, result, rungs, folder)


def _figures(rung: RungResult) -> dict[str, float]:
    return {key: float(value) for key in _FIGURES if (value := getattr(rung, key)) is not None}


def _settings(result: ClimbResult, rung: RungResult) -> dict[str, Any]:
    own = {f"{name}.{key}": value for name, values in rung.settings.items() for key, value in _items(values)}
    return {"model": result.model, "metric": rung.metric, "family": rung.family, "status": rung.status, **own}


def _items(values: Any) -> Iterator[tuple[str, Any]]:
    yield from values.items() if isinstance(values, dict) else [("value", values)]


def _mlflow(mlflow: Any, result: ClimbResult, rungs: list[RungResult], folder: Path) -> str:
    mlflow.set_experiment(result.task)
    with mlflow.start_run(run_name=folder.name) as parent:
        mlflow.set_tags({"recommended": result.recommended, "decision": result.decision})
        mlflow.log_metrics({"seconds": result.seconds})
        for file in (folder / "report.json", folder / "report.html"):
            if file.exists():
                mlflow.log_artifact(str(file))
        for rung in rungs:
            with mlflow.start_run(run_name=rung.name, nested=True):
                mlflow.log_params({key: str(value)[:500] for key, value in _settings(result, rung).items()})
                mlflow.log_metrics(_figures(rung))
                for step, loss in rung.losses:
                    mlflow.log_metric("loss", loss, step=step)
    return f"{mlflow.get_tracking_uri()}, run {parent.info.run_id}"


def _wandb(wandb: Any, result: ClimbResult, rungs: list[RungResult], folder: Path) -> str:
    where = ""
    for rung in rungs:
        run = wandb.init(
            project=result.task, group=folder.name, name=rung.name, config=_settings(result, rung), dir=str(folder),
            reinit="finish_previous", notes=result.decision if rung.name == result.recommended else None,
        )  # fmt: skip
        for step, loss in rung.losses:
            run.log({"loss": loss}, step=step)
        run.summary.update(_figures(rung))
        where = run.url or run.dir
        run.finish()
    return str(where)


def _tensorboard(tensorboard: Any, result: ClimbResult, rungs: list[RungResult], folder: Path) -> str:
    out = folder / "tensorboard"
    for rung in rungs:
        with tensorboard.SummaryWriter(log_dir=str(out / rung.name)) as writer:
            for step, loss in rung.losses:
                writer.add_scalar("loss", loss, step)
            for key, value in _figures(rung).items():
                writer.add_scalar(key, value, 0)
            writer.add_text("settings", "\n\n".join(f"{k}: {v}" for k, v in _settings(result, rung).items()))
    return f"{out}: tensorboard --logdir {out}"
