"""The run directory: what is not one, or was edited, is refused by file."""

import copy
import shutil

import pytest
from rich.console import Console

from jaxvsa.core.config import load_config, to_plain
from jaxvsa.core.errors import UserError
from jaxvsa.workflows.fit import fit
from jaxvsa.workflows.runs import RunFolder, upgraded


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("results.json", "[]", r"results\.json is damaged; delete it and run the same command"),
        ("results.json", "{", r"results\.json is damaged; delete it and run the same command"),
        ("data.json", "{}", r"data\.json does not describe the data of the run; restore it"),
        ("config.json", '{"format": 1, "config": 3}', r"config\.json is not a run configuration"),
    ],
)
def test_edited_files_of_a_run_are_named(tiny, trained_run, tmp_path, name, content, match):
    run = shutil.copytree(trained_run, tmp_path / "run")
    (run / name).write_text(content)
    with pytest.raises(UserError, match=match):
        fit(tiny(), run, Console(quiet=True))


def test_run_must_not_be_a_file(tiny, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match=r"file is a file, not a folder; choose another --run"):
        fit(tiny(), tmp_path / "file", Console(quiet=True))
    assert (tmp_path / "file").read_text() == "mine"


def test_stop_names_the_checkpoint_that_was_just_being_written(tiny, tmp_path):
    with pytest.raises(UserError, match=r"update 2 is not finite, .*; step 1 is saved"):
        fit(tiny("optim.lr=1e30", "train.eval_every=1"), tmp_path / "run", Console(quiet=True))


def test_two_processes_do_not_train_in_one_folder(tiny, tmp_path):
    run = tmp_path / "run"
    with RunFolder(run).held():
        with pytest.raises(UserError, match=r"run is being trained by another process; wait for"):
            fit(tiny(), run, Console(quiet=True))
        assert not (run / "config.json").exists()
    with RunFolder(run).held():  # what is left behind holds nobody up
        pass


@pytest.mark.parametrize("variant", ["demo", "mustard"])
def test_recorded_configuration_gets_the_keys_that_have_come_since(variant):
    now = to_plain(load_config(f"configs/mtransllama.py:{variant}"))
    older = copy.deepcopy(now)
    del older["model"]["qformer"]["dropout"]
    del older["model"]["routing"]["tau_last"], older["model"]["routing"]["tau_updates"]
    older["weights"]["routers"] = True
    before = copy.deepcopy(older)
    assert upgraded(older) == upgraded(now) == now and older == before
