"""Weights leave and come back bit for bit, and what comes back is a run."""

import re

import jax
import numpy as np
import pytest

from jaxvsa import convert as door
from jaxvsa.core import mesh as meshes
from jaxvsa.core.errors import UserError
from jaxvsa.core.files import read_json
from jaxvsa.core.trees import named
from jaxvsa.interop import vccsa
from jaxvsa.interop.roberta import read_encoder, to_names
from jaxvsa.interop.tensors import load_safetensors, save_safetensors
from jaxvsa.training.loop import Memory
from jaxvsa.workflows import export
from jaxvsa.workflows.fit import prepare_run, resume
from jaxvsa.workflows.predict import load
from jaxvsa.workflows.runs import read_trained


@pytest.fixture(scope="module")
def published(trained_run, tmp_path_factory):
    """The run's state dict in a file."""
    out = tmp_path_factory.mktemp("published") / "vccsa.safetensors"
    export.to_published(trained_run, out)
    return out


@pytest.fixture(scope="module")
def returned(published, tiny, weights, prepared, tmp_path_factory):
    """The run that was made of it."""
    run = tmp_path_factory.mktemp("returned") / "run"
    export.from_published(published, tiny(f"weights.text={weights}"), prepared, run)
    return run


def test_state_dict_holds_the_parameters_bit_for_bit(published, trained_run):
    trained, state = read_trained(trained_run), load_safetensors(published)
    live = vccsa.live_tensors(trained.params)
    assert live.keys() < state.keys()
    for name, array in live.items():
        np.testing.assert_array_equal(state[name], array, err_msg=name, strict=True)
    kernel = trained.params["head_mood_kernel"]
    assert state["mood_classifier_head.classLinear.weight"].shape == kernel.shape[::-1]


def test_record_beside_it_says_what_the_tensors_are(published, trained_run):
    record, trained = read_json(published.with_suffix(".json"), "record"), read_trained(trained_run)
    assert record["labels"] == {"mood": ["down", "flat", "up"], "topic": ["0", "1"]}
    assert (record["system"], record["step"]) == ("vccsa", trained.step)
    assert record["features"]["encoder"] == "net"
    assert record["config"] == trained.config


def test_round_trip_is_exact(returned, trained_run):
    mine, theirs = (named(read_trained(run).params) for run in (returned, trained_run))
    assert mine.keys() == theirs.keys()
    for path, leaf in theirs.items():
        np.testing.assert_array_equal(mine[path], leaf, err_msg=path, strict=True)


def test_returned_run_predicts_the_same(returned, trained_run, corpus):
    rows = [{"comment": "nice 🐶", "video": "v3.mp4"}, {"comment": "", "video": "v9.mp4"}]
    model = load(returned)
    assert model.step == 0
    want = load(trained_run).predict(rows, corpus / "features")
    assert model.predict(rows, corpus / "features") == want


def test_returned_run_can_be_trained_further(returned, tiny, weights, trained_run):
    """What `fit` does before its first update: the folder is taken for the same run, at step 0."""
    setup = prepare_run(tiny(f"weights.text={weights}"), returned)
    assert setup.folder.begin(setup.data.config, setup.data.record())
    rules, params = setup.system.partition, setup.abstract.params()
    shardings = meshes.shardings(setup.abstract, rules, setup.mesh, params=params)
    state, memory, stream = resume(setup, setup.folder.checkpoints(), shardings)
    assert (int(state.step), memory, stream) == (0, Memory(), None)
    theirs = named(read_trained(trained_run).params)
    for path, leaf in named(state.params()).items():
        np.testing.assert_array_equal(leaf, theirs[path], err_msg=path, strict=True)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(state.opt))


@pytest.mark.torch
def test_a_file_of_torch_is_read_as_well(published, tiny, weights, prepared, returned, tmp_path):
    torch = pytest.importorskip("torch")
    state = {n: torch.from_numpy(a.copy()) for n, a in load_safetensors(published).items()}
    torch.save(
        {"state_dict": {f"module.{name}": t for name, t in state.items()}}, tmp_path / "v.pkl"
    )
    config = tiny(f"weights.text={weights}")
    export.from_published(tmp_path / "v.pkl", config, prepared, tmp_path / "run")
    mine, theirs = (named(read_trained(run).params) for run in (tmp_path / "run", returned))
    for path, leaf in theirs.items():
        np.testing.assert_array_equal(mine[path], leaf, err_msg=path, strict=True)


def test_text_encoder_leaves_under_the_published_names(weights, tmp_path):
    out = tmp_path / "text.safetensors"
    assert export.text_to_published(weights, out) == len(load_safetensors(out))
    fields, params = read_encoder(weights)
    for name, array in to_names(params, "text_encoder.text_encoder.").items():
        np.testing.assert_array_equal(load_safetensors(out)[name], array, strict=True)
    assert read_json(out.with_suffix(".json"), "fields") == fields


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("weights.text=", "config.weights.text is empty; name the Hugging Face folder"),
        ("weights.freeze_text=True", "freeze_text keeps the text encoder out of checkpoints"),
        ("model.num_scales=3", "'stack_cnn.2.conv.weight' is missing"),
        ("model.num_scales=1", r"'stack_.*\.1\..*' has no place in the model; did you mean"),
        ("model.aspect_width=7", r"is \(6,.*, but the configuration makes it \(7,"),
    ],
)
def test_what_does_not_fit_is_named_and_leaves_no_folder(
    override, message, published, tiny, weights, prepared, tmp_path
):
    config = tiny(f"weights.text={weights}", override)
    with pytest.raises(UserError, match=message):
        export.from_published(published, config, prepared, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_files_and_folders_are_checked_first(
    published, tiny, weights, prepared, trained_run, tmp_path
):
    config = tiny(f"weights.text={weights}")
    with pytest.raises(
        UserError, match=r"expected a file that ends in \.safetensors, \.bin, \.pkl"
    ):
        export.from_published(tmp_path / "a.h5", config, prepared, tmp_path / "run")
    with pytest.raises(UserError, match="tiny already exists: choose another --out"):
        export.from_published(published, config, prepared, trained_run)
    with pytest.raises(UserError, match="--data demo: name a folder"):
        export.from_published(published, config, "demo", tmp_path / "run")
    with pytest.raises(UserError, match=r"out\.pt: the name must end in \.safetensors"):
        export.to_published(trained_run, tmp_path / "out.pt")


def test_door_goes_there_and_back(trained_run, tiny, weights, prepared, tmp_path, capsys):
    out, run = tmp_path / "out.safetensors", tmp_path / "run"
    door.main(["to-published", f"--run={trained_run}", f"--out={out}", "--step=4"])
    assert re.fullmatch(rf"wrote \d+ tensors: {out}\n", capsys.readouterr().out)
    given = ["--config=vccsa:tiny", f"--config.weights.text={weights}"]
    door.main(["from-published", f"--input={out}", f"--data={prepared}", f"--out={run}", *given])
    assert f"python -m jaxvsa.evaluate --run {run}" in capsys.readouterr().out
    assert load(run).step == 0
    door.main(["text", f"--input={weights}", f"--out={tmp_path / 'text.safetensors'}"])
    assert (tmp_path / "text.safetensors").exists()


def test_door_wants_a_configuration_where_one_is_read(tmp_path):
    files = [f"--input={tmp_path}", f"--out={tmp_path}"]
    with pytest.raises(UserError, match="--config belongs to from-published, which needs it"):
        door.main(["from-published", "--data=x", *files])
    with pytest.raises(UserError, match="--config belongs to from-published, which needs it"):
        door.main(["text", *files, "--config=vccsa"])


def test_a_truncated_state_dict_is_refused(published, tiny, weights, prepared, tmp_path):
    short = tmp_path / "short.safetensors"
    short.write_bytes(published.read_bytes()[:-1])
    with pytest.raises(UserError, match="not a whole safetensors file"):
        export.from_published(short, tiny(f"weights.text={weights}"), prepared, tmp_path / "run")
    state = load_safetensors(published)
    state["head.weight"] = np.zeros(3, np.float32)
    save_safetensors(short, state)
    with pytest.raises(UserError, match=r"short.safetensors: tensor 'head.weight' has no place"):
        export.from_published(short, tiny(f"weights.text={weights}"), prepared, tmp_path / "run")
