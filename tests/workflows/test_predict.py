"""Predictions of a trained run: formats, order, and independence of what stands beside."""

import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvsa import predict as door
from jaxvsa.core.config import to_plain
from jaxvsa.core.errors import UserError
from jaxvsa.core.mesh import all_devices
from jaxvsa.data.prepared import Prepared
from jaxvsa.systems.base import abstract_batch, expand
from jaxvsa.systems.vccsa.system import build
from jaxvsa.workflows import predict, score
from jaxvsa.workflows.assemble import assemble
from jaxvsa.workflows.runs import Trained, read_trained

LABELS = {"mood": ("down", "flat", "up"), "topic": ("0", "1")}


@pytest.fixture(scope="module")
def model(trained_run):
    return predict.load(trained_run)


def _rows(corpus, split):
    lines = (corpus / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, lines) if row["split"] == split]


def _probs(rows):
    return np.array([[*row["mood"]["probabilities"].values()] for row in rows])


def test_model_says_what_it_is(model, trained_run):
    assert model.labels == LABELS
    assert model.step in (2, 4)
    assert model.config["model"]["visual_length"] == 12
    assert predict.load(trained_run, "newest").step == 4
    assert predict.load(trained_run, "4").step == 4


def test_predictions_equal_a_plain_forward_pass(model, trained_run, corpus, prepared):
    """One comment at a time, padded by hand to the full lengths, without the pipeline."""
    trained, rows = read_trained(trained_run), _rows(corpus, "test")[:3]
    table = Prepared.open(prepared).features()
    for row, found in zip(rows, model.predict(rows, corpus / "features"), strict=True):
        ids = trained.codec.encode([row["comment"]], 24).ids_n
        video_gmf = np.zeros((1, 12, 5), np.float16)
        frames = table.of(row["video"])[:12]
        video_gmf[0, : len(frames)] = frames
        batch = {
            "index_b": np.zeros(1, np.int32),
            "ids_gn": np.pad(ids, (0, 24 - len(ids)), constant_values=1)[None],
            "word_bl": np.arange(24, dtype=np.int32)[None],
            "length_b": np.array([len(ids)], np.int32),
            "frame_gm": np.where(np.arange(12) < len(frames), 0, -1)[None].astype(np.int32),
            "shot_bt": np.arange(12, dtype=np.int32)[None],
            "count_b": np.array([len(frames)], np.int32),
            "video_gmf": video_gmf,
        }
        outputs = jax.jit(trained.system.tasks["classify"].outputs)(
            trained.params, expand(trained.system, {}, batch)
        )
        for task, names in LABELS.items():
            want_c = np.asarray(outputs[task][0])
            got = found[task]["probabilities"]
            assert tuple(got) == names
            np.testing.assert_allclose([*got.values()], want_c, rtol=1e-5, atol=1e-6)
            assert found[task]["predicted"] == names[int(want_c.argmax())]


def test_rows_come_back_in_order_with_their_columns(model, corpus):
    rows = [
        {"comment": "nice", "video": "v3.mp4", "key": "b", "mood": "up", "hashtag": "#x"},
        {"comment": "", "video": "v0.mp4", "split": "whatever", "mood": None, "topic": 1},
    ]
    first, second = model.predict(rows, corpus / "features")
    assert list(first) == ["key", "video", "comment", "mood", "topic"]
    assert (first["key"], first["video"], first["comment"]) == ("b", "v3.mp4", "nice")
    assert (first["mood"]["label"], first["topic"]["label"]) == ("up", None)
    assert (second["key"], second["mood"]["label"], second["topic"]["label"]) == (
        "row-2",
        None,
        "1",
    )
    swapped = model.predict(rows[::-1], corpus / "features")
    assert [row["comment"] for row in swapped] == ["", "nice"]


def test_a_row_does_not_depend_on_the_rows_beside_it(model, corpus):
    rows = _rows(corpus, "test")
    many = model.predict(rows, corpus / "features")
    for at in (0, 7, 13):
        alone = model.predict(rows[at : at + 1], corpus / "features")
        np.testing.assert_allclose(_probs(alone), _probs(many[at : at + 1]), rtol=1e-5, atol=1e-6)
    assert np.ptp(_probs(many), axis=0).max() > 1e-4  # the rows do differ


def test_no_row_is_no_prediction(model):
    assert model.predict([]) == []


def test_video_changes_the_answer_and_only_its_first_rows(model, corpus, tmp_path):
    row = {"comment": "nice", "video": "v14.mp4"}  # 15 rows, the model sees 12
    (want,) = model.predict([row], corpus / "features")
    values = np.load(corpus / "features" / "v14.npy")
    np.save(tmp_path / "v14.npy", values[:12])
    assert model.predict([row], tmp_path) == [want]
    np.save(tmp_path / "v14_x.npy", -values)
    assert model.predict([row], tmp_path, suffix="_x.npy") != [want]


def _untrained(config, tmp_path):
    """A model with random parameters."""
    data = assemble(to_plain(config), tmp_path)
    system = build(data.config, data.facts)
    sizes = {**data.batching.full_sizes(), "f": data.facts.feature_width or 0}
    zeros = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), abstract_batch(system, sizes)
    )
    params = jax.jit(system.init)(jax.random.key(0), zeros)
    facts = (data.config, data.facts, system, params, data.codec, data.manifest)
    return predict.Model(Trained(*facts, step=0))


def test_a_model_of_text_alone_needs_no_video_and_takes_none(tiny, corpus, tmp_path):
    model = _untrained(tiny("model.variant=text"), tmp_path)
    first, second = model.predict([{"comment": "nice"}, {"comment": "nice", "video": "v1.mp4"}])
    assert (first["key"], first["video"], second["video"]) == ("row-1", "row-1", "v1.mp4")
    assert first["mood"] == second["mood"]
    with pytest.raises(UserError, match="the model reads no video; leave it out"):
        model.predict([{"comment": "nice"}], corpus / "features")


def test_a_model_of_video_alone_does_not_see_the_comment(tiny, corpus, tmp_path):
    model = _untrained(tiny("model.variant=video"), tmp_path)
    rows = [{"comment": text, "video": f"v{g}.mp4"} for g, text in ((1, "a"), (1, "b c"), (2, "a"))]
    one, same, other = _probs(model.predict(rows, corpus / "features"))
    np.testing.assert_allclose(one, same, rtol=1e-6)
    assert np.abs(one - other).max() > 1e-6


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"video": "v1.mp4"}, "row 1: no column 'comment'"),
        ({"comment": "a", "vidoe": "v1.mp4"}, "row 1: no column 'video'; did you mean 'vidoe'"),
        ({"comment": 3, "video": "v1.mp4"}, "row 1: comment 3 is no text"),
        ({"comment": "a", "video": "v1.mp4", "mood": "upp"}, "unknown mood 'upp'; did you mean"),
        ({"comment": "a", "video": "v99.mp4"}, "1 of 1 feature files are missing, first: v99.npy"),
    ],
)
def test_bad_rows_are_named(model, corpus, row, message):
    with pytest.raises(UserError, match=message):
        model.predict([row], corpus / "features")


def test_features_must_be_those_of_training(model, tmp_path):
    row = {"comment": "a", "video": "v.mp4"}
    with pytest.raises(UserError, match="trained on features of 'net', 5 wide; name their folder"):
        model.predict([row])
    np.save(tmp_path / "v.npy", np.ones((3, 7), np.float32))
    with pytest.raises(UserError, match=r"rows are 7 wide, but the model was .* 5 wide"):
        model.predict([row], tmp_path)


def test_batches_are_few_sizes_and_fit_the_devices():
    mesh = all_devices()
    assert mesh.size == 4  # conftest.py
    assert [score.batch_size(n, 16, mesh) for n in (1, 4, 5, 9, 16, 17, 1000)] == [
        4, 4, 8, 16, 16, 16, 16
    ]  # fmt: skip
    assert score.batch_size(1000, 10, mesh) == 12


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv"])
def test_door_predicts_a_file_without_the_training_data(
    name, trained_run, corpus, tmp_path, capsys
):
    run = shutil.copytree(trained_run, tmp_path / "moved")
    rows = _rows(corpus, "test")[:3]
    if name.endswith("csv"):
        lines = [f"{row['comment']},{row['video']}" for row in rows]
        text = "\n".join(["comment,video", *lines]) + "\n"
    else:
        text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / name).write_text(text, encoding="utf-8")
    out = tmp_path / "out.jsonl"
    files = [f"--input={tmp_path / name}", f"--out={out}", f"--features={corpus / 'features'}"]
    door.main([f"--run={run}", "--step=newest", *files])
    assert capsys.readouterr().out == f"predicted 3 rows: {out}\n"
    found = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [row["comment"] for row in found] == [row["comment"] for row in rows]
    want = predict.load(trained_run, 4).predict(rows, corpus / "features")
    assert _probs(found).tolist() == _probs(want).tolist()


def test_door_takes_an_empty_file_and_keeps_the_old_output_on_an_error(
    trained_run, corpus, tmp_path
):
    source, out = tmp_path / "rows.csv", tmp_path / "out.jsonl"
    arguments = [f"--run={trained_run}", f"--input={source}", f"--out={out}"]
    arguments.append(f"--features={corpus / 'features'}")
    source.write_text("comment,video\n", encoding="utf-8")
    door.main(arguments)
    assert out.read_text() == ""
    out.write_text("old")
    source.write_text("comment\nhello\n", encoding="utf-8")
    with pytest.raises(UserError, match=re.escape(f"{source} line 2: no column 'video'")):
        door.main(arguments)
    assert out.read_text() == "old"


def test_door_does_not_write_over_its_input(trained_run, tmp_path):
    source = tmp_path / "rows.jsonl"
    source.write_text('{"comment": "a", "video": "v1.mp4"}\n')
    with pytest.raises(UserError, match=r"is the input itself; choose another file"):
        door.main([f"--run={trained_run}", f"--input={source}", f"--out={source}"])
    assert source.read_text().startswith('{"comment"')


def test_door_refuses_steps_and_folders_that_are_not_there(trained_run, corpus, tmp_path):
    arguments = [f"--input={corpus / 'rows.jsonl'}", f"--out={tmp_path / 'out.jsonl'}"]
    for step in ("3", "last"):
        with pytest.raises(UserError, match=f"has no checkpoint of step {step}; it has"):
            door.main([f"--run={trained_run}", f"--step={step}", *arguments])
    with pytest.raises(UserError, match="is not a run: it has no config"):
        door.main([f"--run={tmp_path}", *arguments])
