"""Runs on pairs of videos: batches, interruptions, other devices, figures, bad settings."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from rich.console import Console
from workflows import small_rewards as small
from workflows.small_runs import assert_same_run
from workflows.trajectories import assert_same, trajectory

from jaxvsa import evaluate as door
from jaxvsa.core.config import to_plain
from jaxvsa.core.errors import UserError
from jaxvsa.data.pairs import KINDS
from jaxvsa.workflows import doctor, export
from jaxvsa.workflows.assemble import assemble
from jaxvsa.workflows.dry_run import dry_run
from jaxvsa.workflows.evaluate import evaluate
from jaxvsa.workflows.pairs import Assembled
from jaxvsa.workflows.rewards_demo import Sizes, write_rewards
from jaxvsa.workflows.runs import read_trained


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.write(tmp_path_factory.mktemp("rewards") / "small")


@pytest.fixture(scope="module")
def trained(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the demo's setting, contrastive term and all."""
    run = tmp_path_factory.mktemp("runs") / "trained"
    small.fit("demo", root, run)
    return run


def opened(variant: str, root: Path, *more: str) -> Assembled:
    found: Any = assemble(to_plain(small.config(variant, root, *more)), root)
    return found


def test_facts_are_those_of_the_data(root: Path) -> None:
    data = opened("demo", root)
    assert data.splits == ("train", "dev", "test")
    facts = data.facts
    assert set(facts.sources) == {"mos", "levels", "across", "aligned"}
    assert (facts.video_width, facts.text_width) == (24, 24)
    assert facts.video_dtype == "float32"  # the mean, taken once
    mos = facts.sources.index("mos")
    assert max(facts.score_high_sd[mos]) == 100 and 30 < max(facts.score_mean_sd[mos]) < 70
    assert type(facts).from_dict(json.loads(json.dumps(vars(facts)))) == facts


@pytest.mark.parametrize("resident", ["yes", "no"])
def test_features_reach_the_batch_from_the_device_or_the_host(root: Path, resident: str) -> None:
    data = opened("demo", root, f"data.resident={resident}", "model.pool_video=attention")
    examples = data.examples("dev")
    sizes = {name: axis.need_b.max() for name, axis in examples.axes().items()}
    batch = examples.batch(np.arange(4), np.ones(4, bool), sizes | {"k": 4}, 1)
    assert ("frames_bvtf" in batch) == (resident == "no")
    pairs, table = data.judged("dev"), data.features[0]
    for b in range(4):
        for v, name in enumerate((pairs.video_a[b], pairs.video_b[b])):
            rows = batch["video_bvt"][b, v]
            np.testing.assert_array_equal(table.values_nf[rows[rows >= 0]], table.of(name))


@pytest.mark.parametrize(
    ("negatives", "kept"),
    [("none", False), ("inbatch", False), ("materialised", True), ("both", True)],
)
def test_pairs_of_two_prompts_are_learned_from_only_if_asked_for(
    root: Path, negatives: str, kept: bool
) -> None:
    data = opened("demo", root, f"loss.negatives={negatives}")
    kind_n = data.cross.pairs.kind_n.copy()
    for split in ("train", "dev"):
        kind_n[data.examples(split).row_n[:3]] = KINDS.index("mismatch")
    pairs = dataclasses.replace(data.cross.pairs, kind_n=kind_n)
    other = dataclasses.replace(data, cross=dataclasses.replace(data.cross, pairs=pairs))
    lost = {
        split: len(data.examples(split)) - len(other.examples(split)) for split in ("train", "dev")
    }
    assert lost == {"train": 0 if kept else 3, "dev": 0}


def test_ties_are_shown_to_losses_that_learn_from_them_alone(root: Path) -> None:
    found, said = {}, {}
    for variant in ("demo", "demo_btt", "demo_sft_raw"):
        data = opened(variant, root)
        answer_n = data.cross.pairs.answer_n[data.examples("train").row_n]
        found[variant] = len(answer_n), int(np.sum(answer_n == 0))
        said[variant] = [line for line in data.about() if line.startswith("without")]
    (decided, none), (whole, ties) = found["demo"], found["demo_btt"]
    assert none == 0 < ties and decided == whole - ties and found["demo_sft_raw"] == (whole, ties)
    line = f"without {ties:,} ties, from which config.loss.kind 'bt' learns nothing"
    assert said == {"demo": [line], "demo_btt": [], "demo_sft_raw": []}
    assert 0 in opened("demo", root).judged("test").answer_b  # evaluation keeps them


def test_interruption_is_invisible(trained: Path, root: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut"
    shutil.copytree(trained, cut)
    shutil.rmtree(cut / "checkpoints" / "6")
    (cut / "results.json").unlink()
    small.fit("demo", root, cut)
    assert_same_run(trained, cut)


@pytest.fixture(scope="module")
def alone(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """Losses, gradients and rewards on one device."""
    return course(root, tmp_path_factory.mktemp("one"), 1)


def course(root: Path, run: Path, count: int, *more: str) -> dict[str, np.ndarray]:
    given = small.flags(root, "mesh.data=-1", *more)
    return trajectory(root, run, count, *given, spec=f"{small.SPEC}:demo", task="rank")


@pytest.mark.parametrize("more", [(), ("mesh.data=2", "mesh.fsdp=2", "data.resident=no")])
def test_device_count_is_invisible(
    more: tuple[str, ...], root: Path, tmp_path: Path, alone: dict[str, np.ndarray]
) -> None:
    """With the contrastive term, which looks at the whole batch."""
    assert len(jax.devices()) >= 4
    found = course(root, tmp_path, 4, *more)
    assert found.keys() == alone.keys() and "probability/reward" in found
    assert_same(found, alone)


def test_results_stand_beside_rows_without_a_model(trained: Path) -> None:
    rows = json.loads((trained / "results.json").read_text())
    names = [row["name"].split(" (")[0] for row in rows]
    assert names[0] == "clevereward" and {"random", "always A", "the truth itself"} <= set(names)
    values = rows[0]["values"]
    for split in ("dev", "test"):
        for source in ("mos", "levels", "across", "aligned"):
            assert 0 <= values[f"{split}/source {source}/without_ties"] <= 1
        lines = (trained / "predictions" / f"{split}.jsonl").read_text().splitlines()
        found = [json.loads(line) for line in lines]
        assert len(found) == values[f"{split}/pairs/num_pairs"]
        decided = [row for row in found if row["answer"] != "tie"]
        right = np.mean(
            [(row["reward_a"] > row["reward_b"]) == (row["answer"] == "A") for row in decided]
        )
        assert right == pytest.approx(values[f"{split}/pairs/without_ties"], abs=1e-9)
        assert (trained / "predictions" / f"{split}-reliability.csv").exists()


def test_evaluation_gives_the_figures_of_the_run_again(trained: Path, tmp_path: Path) -> None:
    """On all devices, while the run had one; dev is evaluated for the thresholds alone."""
    found = evaluate(trained, "test", out=tmp_path)
    want = {row["name"]: row for row in json.loads((trained / "results.json").read_text())}
    for row in found:
        before = want[row.name]["values"]
        assert row.values == {
            k: pytest.approx(v, abs=1e-6) for k, v in before.items() if k.startswith("test/")
        }
    assert not (tmp_path / "dev.jsonl").exists()


def test_model_of_ties_gives_their_probabilities(root: Path, tmp_path: Path) -> None:
    small.fit("demo_btt", root, tmp_path / "run", "train.steps=2")
    line = (tmp_path / "run" / "predictions" / "test.jsonl").read_text().splitlines()[0]
    row = json.loads(line)
    assert row["p_a"] + row["p_b"] + row["p_tie"] == pytest.approx(1, abs=1e-6)
    assert read_trained(tmp_path / "run").params["loss"]["tie_bias"].shape == ()


def test_door_prints_tables(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    door.main([f"--run={trained}"])
    printed = capsys.readouterr().out
    for word in ("without ties", "always A", "the truth itself", "across", "groups of prompts"):
        assert word in printed
    with pytest.raises(UserError, match="pairs are split in one way; leave it out"):
        door.main([f"--run={trained}", "--protocol=official"])


def test_sizes_before_training(root: Path, tmp_path: Path) -> None:
    console = Console(file=io.StringIO())
    found = dry_run(small.config("demo", root), tmp_path / "run", console)
    assert found["parameters that learn"] == 2 * (24 * 8 + 8) + 1
    assert found["frozen parameters"] == 0


def test_there_is_no_published_form_of_the_weights(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a run of clevereward; no code with weights of that"):
        export.to_published(trained, tmp_path / "out.safetensors")
    with pytest.raises(UserError, match="is a run without a Q-Former"):
        export.to_adapters(trained, tmp_path / "out")


def test_doctor_finds_nothing_wrong(trained: Path, root: Path) -> None:
    findings = {one.name: one for one in doctor.examine(run=trained, data=root)}
    assert {"run and data", "pairs"} <= findings.keys()
    for name in ("run", "run and data", "pairs"):
        assert findings[name].ok, findings[name].text
    assert "no leak between splits" in findings["pairs"].text


def test_doctor_says_that_the_pairs_are_gone(trained: Path, tmp_path: Path) -> None:
    findings = {one.name: one for one in doctor.examine(run=trained, data=tmp_path / "gone")}
    assert "comments" not in findings
    for name in ("run and data", "pairs"):
        assert "gone is no VideoCross: there is no such folder" in findings[name].text


def test_doctor_reads_the_features(root: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(root, damaged)
    record = next(path for path in (damaged / "videos").rglob("*array_record*") if path.is_file())
    data = bytearray(record.read_bytes())
    data[len(data) // 2] ^= 255
    record.write_bytes(data)
    findings = {one.name: one for one in doctor.examine(data=damaged)}
    assert not findings["pairs"].ok and "\n" not in findings["pairs"].text
    shutil.rmtree(damaged / "questions")
    shutil.rmtree(damaged / "videos")
    findings = {one.name: one for one in doctor.examine(data=damaged)}
    assert not findings["pairs"].ok


@pytest.mark.parametrize(
    ("variant", "more", "match"),
    [
        ("demo", "train.accumulate=2", "loss of clevereward looks across examples, so that parts"),
        ("demo", "mesh.step=pmap", "'pmap', but the loss of clevereward looks across examples"),
        ("demo", "data.root=", "config.data.root is empty; write the data once with"),
        ("demo", "data.sampling=2.0", "sampling is 2.0; it must be from 0 to 1"),
        ("demo", "data.num_frames=0", "num_frames is 0; 1 is the least"),
        ("demo", "data.resident=maybe", r"config\.data\.resident: .*'maybe'"),
        ("demo", "loss.kind=mse", "kind is 'mse', but config.model.head is 'cosine'"),
        ("demo_sft_raw", "loss.kind=bt", "kind is 'bt', but config.model.head is 'regression'"),
        ("demo_sft_raw", "loss.negatives=both", "which has no contrastive term"),
        ("demo", "model.width=0", "config.model.width is 0; 1 is the least"),
        ("demo", "train.select_on=dev/all/micro_f1_sum", "which the evaluation does not give"),
    ],
)
def test_bad_settings_are_one_line(
    root: Path, tmp_path: Path, variant: str, more: str, match: str
) -> None:
    with pytest.raises(UserError, match=match) as caught:
        small.fit(variant, root, tmp_path / "bad", more)
    assert "\n" not in str(caught.value)


def test_accumulation_without_the_contrastive_term_changes_nothing(
    root: Path, tmp_path: Path
) -> None:
    """Where the loss adds up, parts of a batch give what the whole gives."""
    found = [
        course(root, tmp_path, 1, "loss.negatives=none", f"train.accumulate={parts}")
        for parts in (1, 2)
    ]
    assert_same(*found)


def test_pairs_that_teach_nothing_are_refused(tmp_path: Path) -> None:
    """Ties under a loss of decided pairs, votes under a regression: no gradient at all."""
    sizes = Sizes(graded=(0, 4, 4), across=(0, 2, 2), prompts=(8, 4, 4), votes=2)
    write_rewards(tmp_path / "votes", 0, sizes)
    with pytest.raises(
        UserError, match=r"no train pair has scores, from which .*'mse' learns; add"
    ):
        opened("demo_sft_raw", tmp_path / "votes")
    lines = (tmp_path / "votes/pairs.jsonl").read_text().splitlines()
    rows = [{**json.loads(line), "answer": "tie"} for line in lines]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "votes/pairs.jsonl").write_text(text)
    with pytest.raises(UserError, match=r"train pairs are ties, from which .*'bt' learns nothing"):
        opened("demo", tmp_path / "votes")
    opened("demo_btt", tmp_path / "votes")


def test_pairs_without_features_are_refused(root: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(root, bare)
    card = json.loads((bare / "card.json").read_text())
    card["features"].pop("questions")
    (bare / "card.json").write_text(json.dumps(card))
    with pytest.raises(UserError, match="no features of questions; prepare it again with --text"):
        small.fit("demo", bare, tmp_path / "run")
