"""Several runs in one table: folds, variants beside each other, real dialogues."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from workflows import small_questions as small
from workflows.small_runs import run_as_user

from jaxvsa.core.config import load_config
from jaxvsa.core.errors import UserError
from jaxvsa.core.files import write_json
from jaxvsa.data.prepared import Prepared
from jaxvsa.evaluation.tables import Row
from jaxvsa.workflows.compare import find_folds, fit_all, fit_folds, mean_row
from jaxvsa.workflows.prepare_questions import prepare_questions, read_asked
from jaxvsa.workflows.report import read_rows
from jaxvsa.workflows.score import baselines

QUIET = Console(quiet=True)
TEXT = f"{small.SPEC}:mustard_text"
SHORT = (
    "data.protocol=own", "train.steps=2", "train.eval_every=0", "train.save_every=0",
    "data.vocab_size=261", "data.shapes=1",
)  # fmt: skip


def test_mean_and_its_standard_error_by_hand() -> None:
    rows = [
        Row("model (step 7)", {"test/a/accuracy": value, "test/a/f1": 0.5}, {"test/a/f1": 0.1})
        for value in (0.2, 0.4, 0.6)
    ]
    rows[2].values.pop("test/a/f1")
    found = mean_row(rows)
    assert found.name == "model (3 folds)"
    assert found.values == {"test/a/accuracy": pytest.approx(0.4)}  # what all folds have
    # Deviation 0.2 over the root of 3.
    assert found.errors == {"test/a/accuracy": pytest.approx(0.2 / math.sqrt(3))}


def folds_of(root: Path, protocol: str) -> list[str]:
    return find_folds(small.config("mustard_text", root, f"data.protocol={protocol}"))


def test_name_of_a_family_stands_for_its_folds(text_root: Path) -> None:
    assert folds_of(text_root, "own") == ["own_0", "own_1"]
    assert folds_of(text_root, "own_1") == folds_of(text_root, "other") == []
    assert folds_of(text_root, "ow") == folds_of(text_root, "own.") == []
    assert folds_of(Path("nowhere"), "own") == folds_of(Path(""), "own") == []


def test_unknown_variant_is_found_before_any_training(text_root: Path, tmp_path: Path) -> None:
    spec = write_spec(tmp_path / "text.py")
    given = [f"--config.{one}" for one in (f"data.root={text_root}", *SHORT, "beside=('nope',)")]
    with pytest.raises(UserError, match="unknown variant 'nope'"):
        fit_all(spec, given, tmp_path / "run", QUIET)
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def table(text_root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Row]]:
    """Two folds, and a variant beside them."""
    run = tmp_path_factory.mktemp("runs") / "both"
    spec = write_spec(run.parent / "text.py")
    return run, fit_all(spec, small.flags(text_root, *SHORT), run, QUIET)


def write_spec(path: Path) -> str:
    """A configuration of one's own whose second variant stands beside the first."""
    source = Path(small.SPEC).read_text(encoding="utf-8")
    path.write_text(
        source
        + "\n\ndef both():\n    return changed(mustard_text, beside=('low',))\n"
        + "\n\nVARIANTS['both'] = both\n"
        + "VARIANTS['low'] = functools.partial(\n"
        + "    changed, mustard_text, beside=(), model={'max_prompt': 48}\n)\n",
        encoding="utf-8",
    )
    return f"{path}:both"


def test_folds_and_variants_stand_in_one_table(table: tuple[Path, list[Row]]) -> None:
    run, rows = table
    assert [row.name for row in rows] == [
        "mtransllama (2 folds)", "low", "global majority (2 folds)", "speaker prior (2 folds)",
        "chance (2 folds)",
    ]  # fmt: skip
    assert json.loads((run / "table.json").read_text()) == [vars(row) for row in rows]
    for place, folder in ((0, run), (1, run / "low")):
        found = [
            json.loads((folder / f"own_{fold}" / "results.json").read_text())[0]["values"]
            for fold in range(2)
        ]
        name = "test/fun/accuracy"
        values = [one[name] for one in found]
        assert rows[place].values[name] == pytest.approx(np.mean(values))
        assert rows[place].errors[name] == pytest.approx(abs(values[0] - values[1]) / 2)
    assert rows[1].values.keys() >= {"test/fun/written_accuracy", "test/fun/invalid_rate"}


def test_folds_are_resumed(table: tuple[Path, list[Row]], text_root: Path, tmp_path: Path) -> None:
    """The first is complete, the second was stopped before its end."""
    whole, rows = table
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    shutil.rmtree(run / "own_1" / "checkpoints")
    (run / "own_1" / "results.json").unlink()
    # As an older version wrote it, which knew no row of chance.
    old = run / "own_0" / "results.json"
    write_json(old, json.loads(old.read_text())[:-1])
    kept = (run / "own_0" / "results.json").stat().st_mtime_ns
    config = load_config(TEXT, small.flags(text_root, *SHORT))
    found = fit_folds(config, run, QUIET, alone=True)
    assert found[0] == rows[0] and found[1:] == rows[2:-1]
    assert (run / "own_0" / "results.json").stat().st_mtime_ns == kept
    assert json.loads((run / "results.json").read_text()) == [vars(row) for row in found]


# Hits of the speaker prior among 138 utterances, and sarcastic ones among them.
HITS, POSITIVES = (90, 97, 91, 97, 101), (74, 71, 63, 76, 61)


@pytest.fixture(scope="module")
def mustard(mustard_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real annotations, prepared without clips."""
    asked = read_asked("mustard", {"root": mustard_path, "seed": 0})
    out = tmp_path_factory.mktemp("mustard") / "prepared"
    prepare_questions(asked.sets, out, asked.task, asked.names, anonymous=asked.anonymous)
    return out


@pytest.mark.real_data
def test_mustard_dialogues_end_to_end(mustard: Path, tmp_path: Path) -> None:
    """One fold, five updates: every row of the table, baselines as published."""
    given = small.flags(
        mustard, "data.protocol=released5_0", "train.steps=5", "train.batch_size=16",
        "train.eval_batch_size=138", "train.eval_every=0", "data.shapes=1",
    )  # fmt: skip
    rows = fit_all(f"{TEXT}_anonymous", given, tmp_path / "run", QUIET)
    assert [row.name.split(" (")[0] for row in rows] == [
        "mtransllama", "global majority", "speaker prior", "chance",
    ]  # fmt: skip
    name = "test/sarcasm/accuracy"
    assert rows[1].values[name] == pytest.approx((138 - POSITIVES[0]) / 138)
    assert rows[2].values[name] == pytest.approx(HITS[0] / 138)
    assert 0.3 < rows[0].values[name] < 0.7
    assert 0 <= rows[0].values["test/sarcasm/written_accuracy"] <= 1


@pytest.mark.real_data
def test_mustard_baselines_over_the_released_folds(mustard: Path) -> None:
    """45.94 and 68.99 % of the specification."""
    prepared, name = Prepared.open(mustard), "test/sarcasm/accuracy"
    found = [baselines(prepared, f"released5_{fold}", ["test"]) for fold in range(5)]
    hits = [[round(138 * row.values[name], 6) for row in rows] for rows in found]
    positives = [max(count, 138 - count) for count in POSITIVES]
    assert [row[0] for row in hits] == [138 - count for count in positives]
    assert [row[1] for row in hits] == list(HITS)
    means = [mean_row(list(rows)).values[name] for rows in zip(*found, strict=True)]
    assert [round(100 * value, 2) for value in means] == [45.94, 68.99, 50.0]


@pytest.mark.slow
@pytest.mark.real_data
def test_mustard_dialogues_beat_the_majority(mustard: Path, tmp_path: Path) -> None:
    """Five folds of a small language model from scratch, as `mustard_text` trains it."""
    run_as_user(
        "train", "--config", TEXT, f"--config.data.root={mustard}", "--config.beside=()",
        "--run", str(tmp_path / "run"),
    )  # fmt: skip
    model, majority, prior, _ = read_rows(tmp_path / "run" / "results.json")
    name = "test/sarcasm/accuracy"
    assert model.name == "mtransllama (5 folds)"
    assert model.values[name] - 3 * model.errors[name] >= majority.values[name]
    assert prior.values[name] == pytest.approx(476 / 690)
