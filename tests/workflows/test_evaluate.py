"""The table of a run: the figures of training again, beside baselines of the same split."""

import csv
import dataclasses
import io
import json
import shutil

import numpy as np
import pytest
from rich.console import Console

import jaxvsa
from jaxvsa import evaluate as door
from jaxvsa.core.errors import UserError
from jaxvsa.core.files import read_json
from jaxvsa.data.prepared import Prepared
from jaxvsa.data.sources.table import read_table
from jaxvsa.evaluation.predictions import score_predictions
from jaxvsa.workflows.evaluate import evaluate, find_root
from jaxvsa.workflows.prepare import FeatureSource, prepare


@pytest.fixture(scope="module")
def run(trained_run, tmp_path_factory):
    """A copy without its files of predictions, so that what is found was written here."""
    copy = shutil.copytree(trained_run, tmp_path_factory.mktemp("evaluated") / "run")
    shutil.rmtree(copy / "predictions")
    return copy


def _of_split(values, split):
    return {name: value for name, value in values.items() if name.startswith(split)}


@pytest.mark.parametrize("split", ["test", "dev"])
def test_evaluation_repeats_what_training_reported(run, split):
    reported = read_json(run / "results.json", "results")
    found = [dataclasses.asdict(row) for row in evaluate(run, split)]
    assert [row["name"] for row in found] == [row["name"] for row in reported]
    for mine, theirs in zip(found, reported, strict=True):
        for part in ("values", "errors"):
            want = _of_split(theirs[part], split)
            assert mine[part].keys() == want.keys()
            for name, value in want.items():
                np.testing.assert_allclose(mine[part][name], value, rtol=1e-12, err_msg=name)


def test_files_say_the_same_as_the_table(run):
    rows = evaluate(run, "test")
    folder = run / "predictions"
    assert sorted(path.name for path in folder.glob("test*")) == [
        "test-mood-confusion.csv",
        "test-mood-confusion.png",
        "test-topic-confusion.csv",
        "test-topic-confusion.png",
        "test.jsonl",
    ]
    states, names = score_predictions(folder / "test.jsonl")
    assert names == {"mood": ("down", "flat", "up"), "topic": ("0", "1")}
    for task, state in states.items():
        assert state.compute()["micro_f1"] == rows[0].values[f"test/{task}/micro_f1"]
        text = (folder / f"test-{task}-confusion.csv").read_text(encoding="utf-8")
        header, *lines = csv.reader(text.splitlines())
        assert tuple(header[1:]) == names[task]
        assert [[int(cell) for cell in line[1:]] for line in lines] == state.counts_cc.tolist()


def test_baselines_are_those_of_the_split_by_hand(run, prepared):
    first, *others = evaluate(run, "test")
    assert first.name.startswith("vccsa (step ")
    rows = {row.name: row.values for row in others}
    assert list(rows) == ["global majority", "video majority"]
    data = Prepared.open(prepared)
    train, test = (data.comments("official", split) for split in ("train", "test"))
    common = np.bincount(train.labels["mood"]).argmax()
    share = np.mean(test.labels["mood"] == common)
    assert rows["global majority"]["test/mood/accuracy"] == pytest.approx(share, abs=1e-12)


def test_another_protocol_or_step_leaves_the_reported_files_alone(run):
    evaluate(run, "test")
    before = (run / "predictions" / "test.jsonl").read_bytes()
    text = io.StringIO()
    evaluate(run, "test", step="newest", protocol="by_video", console=Console(file=text))
    assert (run / "predictions" / "test.jsonl").read_bytes() == before
    assert (run / "predictions" / "own-by_video-step4" / "test.jsonl").exists()
    assert "trained with the protocol official: it may have seen" in text.getvalue()


def test_other_features_and_labels_are_refused_with_both_named(run, corpus, tmp_path):
    mood = read_table(corpus / "rows.jsonl", ["mood"])
    both = read_table(corpus / "rows.jsonl", ["mood", "topic"])
    prepare(mood, tmp_path / "mood", FeatureSource(corpus / "features", "net"))
    with pytest.raises(UserError, match=r"labels \{'mood': .*'topic': .* the data has \{'mood'"):
        evaluate(run, data=tmp_path / "mood")
    prepare(both, tmp_path / "other", FeatureSource(corpus / "features", "i3d"))
    with pytest.raises(UserError, match=r"features of 'net' .* the data has 'i3d'"):
        evaluate(run, data=tmp_path / "other")
    prepare(both, tmp_path / "rate", FeatureSource(corpus / "features", "net", rows_per_s=3.0))
    with pytest.raises(UserError, match=r"rows_per_s None.* the data has 'net' .rows_per_s 3\.0"):
        evaluate(run, data=tmp_path / "rate")
    prepare(both, tmp_path / "none")
    with pytest.raises(UserError, match="features of 'net', the data has none"):
        evaluate(run, data=tmp_path / "none")
    with pytest.raises(UserError, match="is not prepared"):
        evaluate(run, data=tmp_path)


def test_labels_in_another_order_are_refused(run, prepared, tmp_path):
    data = shutil.copytree(prepared, tmp_path / "data")
    record = json.loads((data / "data.json").read_text())
    record["labels"]["mood"] = ["up", "flat", "down"]
    (data / "data.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"'down', 'flat', 'up'.*'up', 'flat', 'down'"):
        evaluate(run, data=data)


def test_door_prints_the_table(run, tmp_path, capsys):
    door.main([f"--run={run}", "--split=dev", f"--out={tmp_path / 'out'}"])
    printed = capsys.readouterr().out
    for word in ("vccsa (step", "global majority", "video majority", "mood flat", "± is one"):
        assert word in printed
    assert (tmp_path / "out" / "dev.jsonl").exists()


def test_door_needs_a_folder_for_its_files(run, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match=r"cannot write .*file: .*; choose another --out"):
        door.main([f"--run={run}", f"--out={tmp_path / 'file'}"])


def test_demo_runs_are_measured_on_their_own_synthetic_corpus(prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / "data" / "prepared")
    config = {"system": "vccsa", "data": {"root": "demo"}, "seed": 0}
    assert find_root(config, tmp_path) == tmp_path / "data" / "prepared"
    assert find_root(config, tmp_path, prepared) == prepared


def test_public_functions_do_what_the_doors_do(run, tiny, prepared, capsys):
    want = evaluate(run)
    assert jaxvsa.score(run) == want
    assert jaxvsa.load(run, "newest").step == 4
    given = {"data.root": prepared, "train.steps": 4, "train.eval_every": 2, "train.log_every": 1}
    rows = jaxvsa.fit("vccsa:tiny", run, given)
    assert [row.name for row in rows] == [row.name for row in want]
    assert f"{run} is complete" in capsys.readouterr().out
    with pytest.raises(jaxvsa.UserError, match=r"train\.steps: 5 here, 4 in the run"):
        jaxvsa.fit("vccsa:tiny", run, {**given, "train.steps": 5})


def test_unknown_protocols_and_splits_are_named(run, capsys):
    with pytest.raises(UserError, match="no protocol 'by_vido'; did you mean 'by_video'"):
        evaluate(run, protocol="by_vido")
    with pytest.raises(SystemExit) as left:
        door.main([f"--run={run}", "--split=tset"])
    assert left.value.code == 2
    assert "invalid choice: 'tset'" in capsys.readouterr().err
