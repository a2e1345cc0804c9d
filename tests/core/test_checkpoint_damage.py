"""Going back to the checkpoint before a damaged one, and saying so."""

import pathlib
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvsa.core import checkpoint, trees
from jaxvsa.core.checkpoint import Checkpoints
from jaxvsa.core.errors import UserError


def state_of(step):
    """A different state for every step, large enough for several files."""
    values = np.random.default_rng(step).normal(size=(16, 32)).astype(np.float32)
    return {"learn": {"kernel": jnp.asarray(values)}, "rng": jax.random.key(step)}


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    """Finished checkpoints of steps 1 and 2, to be copied, never changed."""
    folder = tmp_path_factory.mktemp("pristine")
    checkpoints = Checkpoints(folder)
    for step in (1, 2):
        checkpoints.save(step, state_of(step), {"epoch": step}, 0.1 * step)
    checkpoints.close()
    return folder


@pytest.fixture
def copied(pristine, tmp_path):
    return shutil.copytree(pristine, tmp_path / "copied")


def flip(path, at=None):
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if at is None else at] ^= 0x10
    path.write_bytes(content)


def largest(folder):
    return max((p for p in folder.rglob("d/*") if p.is_file()), key=lambda p: p.stat().st_size)


def cut(folder):
    path = largest(folder)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


HARMS = {
    "cut": cut,
    "flip": lambda folder: flip(largest(folder)),
    "empty": empty,
    "record": lambda folder: flip(folder / "meta/metadata"),
    "no record": lambda folder: (folder / "meta/metadata").unlink(),
    "no metadata": lambda folder: (folder / "state/_METADATA").unlink(),
    "no manifest": lambda folder: (folder / "state/manifest.ocdbt").unlink(),
    "no arrays": lambda folder: shutil.rmtree(folder / "state"),
}


@pytest.mark.smoke
@pytest.mark.parametrize("harm", HARMS)
def test_damaged_newest_falls_back_loudly_and_is_moved_aside(copied, capfd, harm):
    HARMS[harm](copied / "2")
    checkpoints = Checkpoints(copied)
    step, state, meta = checkpoints.restore_newest(state_of(0))
    assert (step, meta) == (1, {"epoch": 1})
    assert trees.digests(state) == trees.digests(state_of(1))
    assert sorted(path.name for path in copied.iterdir()) == ["1", "2.damaged"]
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"WARNING: {copied / '2'} is damaged (")
    assert line.endswith("); moved to 2.damaged, training goes on from step 1")


def test_step_that_was_moved_aside_is_saved_again(copied):
    HARMS["flip"](copied / "2")
    checkpoints = Checkpoints(copied)
    for _ in range(2):
        assert checkpoints.restore_newest(state_of(0))[0] == 1
        assert checkpoints.steps() == [1]
        checkpoints.save(2, state_of(2), {"epoch": 2}, 0.2)
        checkpoints.close()
        assert sorted(path.name for path in copied.iterdir()) == ["1", "2"]
        assert trees.digests(checkpoints.restore(2, state_of(0))) == trees.digests(state_of(2))
        HARMS["flip"](copied / "2")


def test_several_damaged_ones_are_passed_over(copied, capfd):
    shutil.copytree(copied / "2", copied / "3")  # a record of another step
    HARMS["cut"](copied / "2")
    assert Checkpoints(copied).restore_newest(state_of(0))[0] == 1
    assert capfd.readouterr().err.count("goes on from step 1") == 2
    assert sorted(path.name for path in copied.iterdir()) == ["1", "2.damaged", "3.damaged"]


@pytest.mark.parametrize("lost", ["damaged", "gone"])
def test_no_intact_checkpoint_is_an_error_and_moves_nothing(copied, lost):
    HARMS["cut"](copied / "2")
    if lost == "damaged":
        HARMS["empty"](copied / "1")
    else:
        shutil.rmtree(copied / "1")
        (copied / "2").rename(copied / "2.damaged")
    before = sorted(copied.rglob("*"))
    with pytest.raises(UserError, match=r"no checkpoint in .* is what was saved.*; restore one"):
        Checkpoints(copied).restore_newest(state_of(0))
    assert sorted(copied.rglob("*")) == before


def test_another_model_is_no_damage(copied, capfd):
    with pytest.raises(UserError, match="'extra' is in this model only"):
        Checkpoints(copied).restore_newest({**state_of(0), "extra": jnp.ones(2)})
    assert sorted(path.name for path in copied.iterdir()) == ["1", "2"]
    assert capfd.readouterr().err == ""


def test_any_flipped_byte_gives_this_state_or_the_one_before(pristine, tmp_path):
    want = {step: trees.digests(state_of(step)) for step in (1, 2)}
    steps = []
    for path in sorted(pathlib.Path(pristine / "2").rglob("*")):
        size = path.stat().st_size if path.is_file() else 0
        for at in sorted({size // 5, size // 2, size - 3} & set(range(size))):
            copy = shutil.copytree(pristine, tmp_path / "copy")
            flip(copy / path.relative_to(pristine), at)
            step, state, _ = Checkpoints(copy).restore_newest(state_of(0))
            assert trees.digests(state) == want[step], path
            steps.append(step)
            shutil.rmtree(copy)
    assert steps.count(1) >= 10


def test_unreadable_record_neither_stops_saving_nor_is_removed(copied):
    HARMS["record"](copied / "1")
    checkpoints = Checkpoints(copied, keep_newest=1, keep_best=0)
    checkpoints.save(3, state_of(3), {})
    checkpoints.close()
    assert checkpoints.steps() == [1, 3]


def test_table_of_faults_names_tests_that_exist():
    tests = pathlib.Path(__file__).parents[1]
    source = "".join(path.read_text("utf-8") for path in tests.rglob("test_*.py"))
    named = re.findall(r"^ +(test_\w+)$", checkpoint.__doc__, re.MULTILINE)
    assert len(named) == checkpoint.__doc__.count("test_") >= 12
    for name in named:
        assert f"\ndef {name}(" in source, name
