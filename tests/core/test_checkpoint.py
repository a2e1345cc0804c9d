"""Checkpoints: what comes back is what was saved, or one clear error."""

import json
import pathlib
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxvsa.core import trees
from jaxvsa.core.checkpoint import Checkpoints
from jaxvsa.core.errors import UserError
from jaxvsa.core.integrity import CheckpointDamaged, seal

TX = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))


def training_state(seed=0, width=32):
    """A state with everything that occurs: typed key, NamedTuples, scalars, bfloat16."""
    rng = np.random.default_rng(seed)
    learn = {
        "text": {"kernel": jnp.asarray(rng.normal(size=(16, width)), jnp.float32)},
        "head": {"bias": jnp.asarray(rng.normal(size=5), jnp.bfloat16)},
    }
    return {
        "step": jnp.int32(seed),
        "rng": jax.random.key(seed),
        "learn": learn,
        "opt": TX.init(learn),
    }


def abstract(state, device=0):
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[device])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state)


def assert_same(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    assert trees.digests(got) == trees.digests(want)


def saved(folder, scores, keep_newest=9, keep_best=0):
    """Checkpoints of steps 1, 2, ... with the given scores, closed."""
    checkpoints = Checkpoints(folder, keep_newest, keep_best)
    for step, score in enumerate(scores, 1):
        checkpoints.save(step, training_state(step), {"epoch": step}, score)
    checkpoints.close()
    return checkpoints


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    """One finished checkpoint of step 1, to be copied, never changed."""
    folder = tmp_path_factory.mktemp("pristine")
    saved(folder, [0.5])
    return folder


@pytest.fixture
def copied(pristine, tmp_path):
    return shutil.copytree(pristine, tmp_path / "copied")


def test_restore_gives_back_every_leaf_and_type(pristine):
    state = training_state(1)
    got = Checkpoints(pristine).restore(1, abstract(state))
    assert_same(got, state)
    assert got["rng"].dtype == state["rng"].dtype
    assert type(got["opt"][1][0]) is type(state["opt"][1][0])


def test_meta_record_by_hand(tmp_path):
    meta = {"iterator": {"next_index": 7}, "names": ("joy", "Ärger"), "lr": 0.1}
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(3, {"x": jnp.arange(3)}, meta, 0.25)
    checkpoints.close()
    assert checkpoints.read_meta(3) == {**meta, "names": ["joy", "Ärger"]}
    record = json.loads((tmp_path / "3/meta/metadata").read_text())
    del record["crc"]
    assert record == {
        "format": 1,
        "step": 3,
        "score": 0.25,
        "digests": trees.digests({"x": np.arange(3, dtype=np.int32)}),
        "user": {**meta, "names": ["joy", "Ärger"]},
    }


def test_arrays_may_be_donated_once_save_returns(tmp_path):
    spoil = jax.jit(lambda x: x * 0 - 1, donate_argnums=0)
    checkpoints = Checkpoints(tmp_path, keep_newest=3)
    rows = np.arange(1 << 18, dtype=np.float32)
    for step in (1, 2, 3):
        state = {"x": jnp.asarray(rows) + step}
        checkpoints.save(step, state, {})
        jax.block_until_ready(spoil(state["x"]))
    checkpoints.close()
    for step in (1, 2, 3):
        np.testing.assert_array_equal(
            checkpoints.restore(step, {"x": jax.ShapeDtypeStruct(rows.shape, rows.dtype)})["x"],
            rows + step,
        )


def test_restore_onto_another_number_of_devices(tmp_path):
    def spread(state, num, spec):
        mesh = jax.make_mesh(
            (num,), ("d",), axis_types=(AxisType.Auto,), devices=jax.devices()[:num]
        )
        specs = jax.tree.map(lambda x: P(*spec[: x.ndim]) if x.ndim == 2 else P(), state)
        return jax.tree.map(lambda s: NamedSharding(mesh, s), specs)

    state = training_state(1)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, jax.device_put(state, spread(state, 4, ("d",))), {})
    checkpoints.close()
    assert_same(checkpoints.restore(1, abstract(state)), state)
    places = spread(state, 2, (None, "d"))
    target = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, places
    )
    got = checkpoints.restore(1, target)
    assert_same(got, state)
    assert got["learn"]["text"]["kernel"].sharding == places["learn"]["text"]["kernel"]


def test_restore_raw_is_numpy_of_the_parts_asked_for(pristine):
    state = training_state(1)
    got = Checkpoints(pristine).restore_raw(1)
    assert list(got) == ["learn"]
    assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(got))
    assert_same(got["learn"], state["learn"])
    raw = Checkpoints(pristine).restore_raw(1, ("rng", "opt"))
    np.testing.assert_array_equal(raw["rng"], jax.random.key_data(state["rng"]))
    assert raw["opt"]["1"]["0"]["mu"]["head"]["bias"].dtype == jnp.bfloat16


@pytest.mark.parametrize(
    "scores,newest,best,kept",
    [
        ([0.1, 0.3, 0.2, 0.0], 1, 1, [2, 4]),
        ([0.3, 0.3, 0.3], 1, 1, [1, 3]),  # of equals the earlier one is the best
        ([None, 0.1, None, None], 1, 1, [2, 4]),
        ([0.1, 0.4, 0.3, 0.2], 2, 2, [2, 3, 4]),
        ([0.1, 0.2, 0.3], 1, 1, [3]),
        ([0.3, 0.2, 0.1], 1, 0, [3]),
        ([0.3, 0.1, 0.2], 2, 1, [1, 2, 3]),
        ([0.1, 0.3, 0.2, 0.4], 2, 1, [2, 3, 4]),  # 2 is the best without 4
    ],
)
def test_newest_and_best_are_kept(tmp_path, scores, newest, best, kept):
    checkpoints = saved(tmp_path, scores, newest, best)
    assert checkpoints.steps() == kept
    assert checkpoints.newest() == kept[-1]


def test_scores_survive_a_new_process(tmp_path):
    saved(tmp_path, [0.9, 0.1], 1, 1)
    again = Checkpoints(tmp_path, 1, 1)
    again.save(3, training_state(), {}, 0.5)
    again.close()
    assert again.steps() == [1, 3]


def test_nothing_is_created_or_removed_by_reading(tmp_path):
    checkpoints = Checkpoints(tmp_path / "run")
    assert (checkpoints.steps(), checkpoints.newest()) == ([], None)
    assert checkpoints.restore_newest(training_state()) is None
    checkpoints.wait()
    checkpoints.close()
    assert not (tmp_path / "run").exists()


def test_incomplete_folders_never_count(copied):
    checkpoints = Checkpoints(copied, keep_newest=5)
    (copied / "7").mkdir()
    (copied / "notes").mkdir()
    shutil.copytree(copied / "1", copied / "8.orbax-checkpoint-tmp")
    for step, lost in ((5, "meta"), (6, "state")):
        shutil.copytree(copied / "1", copied / str(step))
        shutil.rmtree(copied / str(step) / lost)
    assert checkpoints.steps() == [1]
    with pytest.raises(UserError, match=r"no checkpoint of step 9, but \[1\]"):
        checkpoints.restore(9, abstract(training_state()))
    with pytest.raises(CheckpointDamaged, match=r"/7 is damaged: meta/metadata is missing"):
        checkpoints.newest()
    checkpoints.save(7, training_state(7), {}, None)
    checkpoints.close()
    assert checkpoints.steps() == [1, 7]
    assert_same(checkpoints.restore(7, abstract(training_state())), training_state(7))
    assert not (copied / "8.orbax-checkpoint-tmp").exists() and (copied / "notes").exists()


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 0x10
    path.write_bytes(content)


def test_a_flipped_byte_never_changes_a_value(pristine, tmp_path):
    state = training_state(1)
    found = 0
    for path in sorted(pristine.rglob("*")):
        size = path.stat().st_size if path.is_file() else 0
        for at in sorted({size // 5, size // 2, size - 3} & set(range(size))):
            copy = shutil.copytree(pristine, tmp_path / "copy")
            flip(copy / path.relative_to(pristine), at)
            try:
                assert_same(Checkpoints(copy).restore(1, abstract(state)), state)
            except UserError as error:
                found += isinstance(error, CheckpointDamaged)
            shutil.rmtree(copy)
    assert found >= 10


def test_damage_names_item_and_cure(copied):
    files = [path for path in (copied / "1/state").rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    flip(largest, largest.stat().st_size // 2)
    with pytest.raises(
        CheckpointDamaged, match=r"/1 is damaged: state: .*; restore it .*, or take another step"
    ):
        Checkpoints(copied).restore(1, abstract(training_state()))
    with pytest.raises(CheckpointDamaged, match="/1 is damaged: state: "):
        Checkpoints(copied).restore_raw(1, None)


@pytest.mark.parametrize("name", ["_METADATA", "manifest.ocdbt"])
@pytest.mark.parametrize("harm", [pathlib.Path.unlink, lambda path: path.write_bytes(b"")])
def test_lost_and_emptied_files_are_damage(copied, name, harm):
    harm(copied / "1/state" / name)
    with pytest.raises(CheckpointDamaged, match="is damaged"):
        Checkpoints(copied).restore(1, abstract(training_state()))


def test_damaged_record_is_not_passed_over(copied):
    path = copied / "1/meta/metadata"
    text = path.read_text()
    for old, new in (('"score": 0.5', '"score": 0.6'), ('"format": 1', '"format": 3')):
        path.write_text(text.replace(old, new))
        with pytest.raises(CheckpointDamaged, match="meta/metadata: the record is not what"):
            Checkpoints(copied).newest()
    path.write_text(text[:-20])
    with pytest.raises(CheckpointDamaged, match="meta/metadata: JSONDecodeError"):
        Checkpoints(copied).read_meta(1)
    path.write_text(json.dumps(seal({**json.loads(text), "format": 2})))
    with pytest.raises(UserError, match="has format 2, this version of jaxvsa reads up to 1"):
        Checkpoints(copied).newest()


def test_record_can_be_replaced_and_counts_from_then_on(tmp_path):
    checkpoints = saved(tmp_path, [0.3, None], 1, 1)
    checkpoints.amend(2, {"epoch": 9}, 0.5)
    again = Checkpoints(tmp_path, 1, 1)
    assert again.read_meta(2) == {"epoch": 9}
    assert_same(again.restore(2, abstract(training_state())), training_state(2))
    again.save(3, training_state(3), {}, 0.4)
    again.close()
    assert again.steps() == [2, 3]
    with pytest.raises(ValueError, match="score of step 3 is nan"):
        again.amend(3, {}, float("nan"))


@pytest.mark.parametrize(
    "change,message",
    [
        (lambda s: s["learn"].pop("head"), "'learn/head/bias' is in the checkpoint, not in this"),
        (lambda s: s.update(extra=jnp.ones(2)), "'extra' is in this model only"),
        (lambda s: s.update(step=jnp.float32(1)), r"'step' is int32 \(\) there, float32 \(\) here"),
        (lambda s: s.update(rng=jnp.zeros(3, jnp.uint32)), r"\(2,\) there, uint32 \(3,\) here"),
    ],
)
def test_restore_refuses_another_model(pristine, change, message):
    target = training_state(1)
    change(target)
    with pytest.raises(UserError, match=message) as raised:
        Checkpoints(pristine).restore(1, abstract(target))
    assert not isinstance(raised.value, CheckpointDamaged)


def test_restore_raw_refuses_an_unknown_part(pristine):
    with pytest.raises(
        UserError, match=r"no part 'held'; it has \['learn', 'opt', 'rng', 'step'\]"
    ):
        Checkpoints(pristine).restore_raw(1, ("held",))


def test_save_refuses(copied):
    checkpoints = Checkpoints(copied)
    with pytest.raises(ValueError, match="step 1 is already saved"):
        checkpoints.save(1, training_state(), {})
    with pytest.raises(ValueError, match="score of step 2 is nan"):
        checkpoints.save(2, training_state(), {}, float("nan"))
    with pytest.raises(ValueError, match="'x' is float64"):
        checkpoints.save(2, {"x": np.ones(3)}, {})
    with pytest.raises(ValueError, match="keep_newest=0"):
        Checkpoints(copied, keep_newest=0)
    assert checkpoints.steps() == [1]


@pytest.fixture
def file_limit():
    """Files of this process may not grow past 4 kB: the nearest thing to a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("ask", ["wait", "save", "close"])
def test_no_space_left_surfaces_and_keeps_what_was_there(copied, file_limit, ask):
    checkpoints = Checkpoints(copied)
    file_limit()
    checkpoints.save(2, training_state(2, width=256), {}, 0.9)
    late = {"save": (3, training_state(3), {})}.get(ask, ())
    with pytest.raises(UserError, match=r"no space left: saving step 2 .* checkpoints: \[1\]"):
        getattr(checkpoints, ask)(*late)
    assert checkpoints.steps() == [1]
    assert_same(checkpoints.restore(1, abstract(training_state())), training_state(1))


def test_saving_goes_on_after_space_was_freed(copied, file_limit):
    checkpoints = Checkpoints(copied)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    file_limit()
    checkpoints.save(2, training_state(2, width=256), {}, 0.9)
    with pytest.raises(UserError, match="no space left"):
        checkpoints.wait()
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    checkpoints.save(3, training_state(3), {}, 0.6)
    checkpoints.close()
    assert sorted(path.name for path in copied.iterdir()) == ["1", "3"]


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    checkpoints = Checkpoints(tmp_path / "file" / "checkpoints")
    with pytest.raises(UserError, match=r"saving step 1 .* failed") as raised:
        checkpoints.save(1, training_state(), {})
    assert "\n" not in str(raised.value)


def test_small_states_give_small_folders(tmp_path):
    state = {
        "learn": {f"layer_{i}": jax.random.normal(jax.random.key(i), (50, 50)) for i in range(10)}
    }
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state, {})
    checkpoints.close()
    size = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert size < 1.5 * trees.num_bytes(state) == 150_000
