"""Measures a trained model on a split, beside rows that need no model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from jaxvsa.core import distributed
from jaxvsa.core.errors import UserError
from jaxvsa.core.mesh import all_devices, local_shards, put_whole
from jaxvsa.data.features import Manifest
from jaxvsa.data.prepared import Prepared
from jaxvsa.evaluation.tables import Row, render
from jaxvsa.workflows import score as scoring
from jaxvsa.workflows.assemble import kind
from jaxvsa.workflows.demo import DEMO
from jaxvsa.workflows.runs import RunFolder, Trained, read_trained


def evaluate(
    run: str | Path,
    split: str = "test",
    data: str | Path | None = None,
    step: str | int = "best",
    protocol: str | None = None,
    out: str | Path | None = None,
    console: Console | None = None,
) -> list[Row]:
    """Prints the table of one split; writes its predictions and confusion matrices.

    Args:
        run: folder of the run.
        split: "train", "dev" or "test".
        data: a prepared folder; the run's own by default.
        step: "best", "newest" or a number of updates.
        protocol: how the data is split; as in the run by default.
        out: folder of the files. By default RUN/predictions, and a sub-folder of it for anything
            but the run's own data, protocol and best step.
        console: where to print; None is silent.

    Returns:
        the rows of the table: the model, then the baselines, of the same split and protocol.

    Raises:
        UserError: no such run, step, data or split; data with other labels or features than the
            model was trained on.
    """
    trained = read_trained(run, step)
    config, folder = trained.config, RunFolder(run)
    prepared = open_data(config, folder.path, data)
    check_labels(trained.facts.label_names, prepared.labels)
    scoring.check_features(trained.manifest, manifest_of(prepared.manifest))
    own = data is None and step == "best" and protocol in (None, config["data"]["protocol"])
    protocol = protocol or config["data"]["protocol"]
    name = f"{prepared.root.name}-{protocol}-step{trained.step}"
    files = Path(out) if out else folder.predictions if own else folder.predictions / name
    scored = _score(trained, prepared, protocol, split)
    labels = trained.facts.label_names
    if distributed.is_first():
        scoring.write_scored(files, scored, split, labels)
    model = Row(f"{trained.system.name} (step {trained.step})", scored.values, scored.errors)
    rows = [model, *scoring.baselines(prepared, protocol, [split])]
    console = console or Console(quiet=True)
    render(rows, labels or {"answer": ()}, [split], console)
    for line in _notes(config, own, protocol, files):
        console.print(line, markup=False, soft_wrap=True)
    return rows


def open_data(config: Mapping[str, Any], run: Path, data: str | Path | None = None) -> Prepared:
    """The prepared folder `data`, or the one a run was trained on."""
    root = str(data or config["data"]["root"])
    return Prepared.open(kind(config["system"]).find_root(run, root, config["seed"]))


def manifest_of(values: Mapping[str, Any] | None) -> Manifest | None:
    """What data.json or a checkpoint says of its features; None without video."""
    return None if values is None else Manifest.from_dict(values)


def check_labels(trained: scoring.LabelNames, given: scoring.LabelNames) -> None:
    """Refuses data whose classes are not those of a model, in this order.

    Raises:
        UserError: both are named.
    """
    if _plain(trained) != _plain(given):
        raise UserError(
            f"the model was trained on the labels {_plain(trained)}, the data has {_plain(given)}; "
            "prepare it with the same label columns and classes"
        )


def _notes(config: Mapping[str, Any], own: bool, protocol: str, files: Path) -> Iterator[str]:
    """What to know when reading the table."""
    trained = config["data"]["protocol"]
    if protocol != trained:
        yield f"The model was trained with the protocol {trained}: it may have seen these comments."
    if own and config["data"]["root"] == DEMO:
        yield "These are figures of the synthetic demo corpus."
    yield f"± is one standard error over videos. Files: {files}"


def _score(trained: Trained, prepared: Prepared, protocol: str, split: str) -> scoring.Scored:
    """The split, measured on all devices."""
    comments = prepared.comments(protocol, split)
    if not len(comments):
        raise UserError(f"{prepared.root}: the split '{split}' of '{protocol}' has no comments")
    batching, mesh = kind(trained.system.name).Batching.of(trained.config), all_devices()
    features = None if trained.manifest is None else prepared.features()
    row_b = None if features is None else features.rows(comments.video)
    examples = batching.examples(comments, trained.codec, row_b, features, share=True)
    size = scoring.batch_size(len(comments), trained.config["train"]["eval_batch_size"], mesh)
    return scoring.score(
        trained.system,
        put_whole(trained.params, mesh),
        scoring.place_tables(trained.system, batching, features, mesh),
        batching.in_order(examples, size, local_shards(mesh)),
        comments,
        trained.facts.label_names,
        mesh,
        split,
        trained.codec,
    )


def _plain(labels: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    return {task: list(labels[task]) for task in sorted(labels)}
