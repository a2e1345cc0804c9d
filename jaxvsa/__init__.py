"""Video sentiment, intent and reward models in JAX: train, evaluate and reproduce them.

    rows = jaxvsa.fit("vccsa:demo", "runs/demo")
    model = jaxvsa.load("runs/demo")
    model.predict([{"comment": "so cute!!", "video": "v1.mp4"}], features="features/")

Importing this does no work: JAX is imported by the first call.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxvsa.core.errors import UserError

if TYPE_CHECKING:
    from jaxvsa.evaluation.tables import Row
    from jaxvsa.workflows import predict_answers, predict_rewards
    from jaxvsa.workflows.predict import Model

__version__ = "0.1.0"
__all__ = ["UserError", "__version__", "fit", "load", "score"]


def fit(config: str, run: str | Path, overrides: Mapping[str, Any] | None = None) -> list[Row]:
    """Trains a run, resumes it, or finds it complete: `python -m jaxvsa.train`.

    Args:
        config: "vccsa:paper" or "configs/vccsa.py:paper".
        run: the run directory.
        overrides: such as {"optim.lr": 1e-4, "data.root": "data/csmv-i3d"}.

    Returns:
        the rows of the final table: the model, then what it is compared with.

    Raises:
        UserError: everything that the user can mend.
    """
    from rich.console import Console

    from jaxvsa.workflows.compare import fit_all

    flags = [f"--config.{key}={value}" for key, value in (overrides or {}).items()]
    return fit_all(config, flags, Path(run), Console(highlight=False))


def load(
    run: str | Path, step: str | int = "best"
) -> Model | predict_answers.Model | predict_rewards.Model:
    """The model of a run.

    One of comments has `predict(rows, features)`, which gives the rows of predictions.jsonl; one of
    questions `answer(questions, clips)`, one of rewards `reward(rows, features, text_encoder)`.

    Args:
        run: the run directory; its training data is not needed.
        step: "best", "newest" or a number of updates.

    Raises:
        UserError: no such run or checkpoint, or a damaged one.
    """
    from jaxvsa.workflows.predict import load

    return load(run, step)


def score(
    run: str | Path,
    split: str = "test",
    data: str | Path | None = None,
    step: str | int = "best",
    protocol: str | None = None,
    out: str | Path | None = None,
) -> list[Row]:
    """Measures a run on a split: `python -m jaxvsa.evaluate` without the printing.

    Arguments and errors are those of `jaxvsa.workflows.evaluate.evaluate`.

    Returns:
        the rows of the table: the model, then what it is compared with.
    """
    from jaxvsa.workflows.evaluate import evaluate

    return evaluate(run, split, data, step, protocol, out)
