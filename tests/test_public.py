"""The public names, what importing them costs, and how every door answers --help and mistakes."""

import importlib
import inspect
import subprocess
import sys

import pytest

import jaxvsa
from jaxvsa.core.cli import run_door

DOORS = ("prepare", "train", "evaluate", "predict", "convert", "doctor")
NAMES = {
    "UserError": None,
    "__version__": None,
    "fit": "(config, run, overrides=None)",
    "load": "(run, step='best')",
    "score": "(run, split='test', data=None, step='best', protocol=None, out=None)",
}


def _leave(door, *argv):
    """Exit code of a door."""
    main = importlib.import_module(f"jaxvsa.{door}").main
    with pytest.raises(SystemExit) as left:
        run_door(main, argv)
    return left.value.code


def test_public_names_are_these_and_no_more():
    assert sorted(jaxvsa.__all__) == sorted(NAMES)
    for name, signature in NAMES.items():
        value = getattr(jaxvsa, name)
        if signature is not None:
            parameters = inspect.signature(value).parameters.values()
            bare = [parameter.replace(annotation=parameter.empty) for parameter in parameters]
            assert str(inspect.Signature(bare)) == signature
    assert issubclass(jaxvsa.UserError, ValueError)


def test_no_public_name_hides_a_door():
    assert not set(NAMES) & set(DOORS)


@pytest.mark.smoke
def test_importing_the_package_and_the_doors_imports_no_jax():
    light = [door for door in DOORS if door != "prepare"]
    code = "import sys, jaxvsa, " + ", ".join(f"jaxvsa.{door}" for door in light)
    code += "; sys.exit(sorted({'jax', 'flax', 'orbax'} & set(sys.modules)) != [])"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("door", DOORS)
def test_help_shows_an_example(door, capsys):
    assert _leave(door, "--help") == 0
    printed = capsys.readouterr().out
    assert f"example:\n  python -m jaxvsa.{door} " in printed


@pytest.mark.parametrize("task", ["to-published", "from-published", "text"])
def test_help_of_every_conversion_shows_its_example(task, capsys):
    assert _leave("convert", task, "--help") == 0
    assert f"example:\n  python -m jaxvsa.convert {task} --" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("door", "argv", "message"),
    [
        ("evaluate", ["--run=x", "--spilt=test"], "unknown flag --spilt; did you mean '--split'?"),
        ("evaluate", [], "give either --run RUN, or --scores FILE with --votes FILE"),
        ("predict", ["--run=x", "--inptu=y"], "unknown flag --inptu; did you mean '--input'?"),
        ("convert", ["to-publish"], "invalid choice: 'to-publish'"),
        ("convert", ["text", "--inptu=x"], "unknown flag --inptu; did you mean '--input'?"),
        ("doctor", ["--wieghts=x"], "unknown flag --wieghts; did you mean '--weights'?"),
        ("doctor", ["--config.optim.lr=1"], "--config.optim.lr=1 needs --config"),
        ("doctor", ["--config=vccsa:papr"], "unknown variant 'papr'"),
        ("evaluate", ["--run=/nowhere"], "/nowhere is not a run"),
        ("train", ["--config=vccsa", "--config.optim.lrr=1"], "did you mean 'lr'?"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_two(door, argv, message, capsys):
    assert _leave(door, *argv) == 2
    found = capsys.readouterr().err
    assert message in found and found.startswith("error: ")
    assert found.count("\n") == 1
