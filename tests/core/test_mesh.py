"""The mesh: sizes by hand, where a training state lies, how a batch is split."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxvsa.core import mesh as meshes
from jaxvsa.core import trees
from jaxvsa.core.errors import UserError

DEVICES = jax.devices()[:4]
RULES = (("text/.*kernel", P("fsdp", "tensor")), (".*", P()))


def options(data, fsdp=1, tensor=1):
    return meshes.MeshOptions(data=data, fsdp=fsdp, tensor=tensor, step="jit")


def params():
    return {
        "text": {"kernel": jnp.ones((8, 6)), "odd_kernel": jnp.ones((7, 6)), "bias": jnp.ones(6)},
        "head": {"kernel": jnp.ones((8, 6)), "scale": jnp.ones(())},
    }


@pytest.mark.parametrize(
    "asked,shape",
    [
        ((-1, 1, 1), (4, 1, 1)),
        ((-1, 2, 1), (2, 2, 1)),
        ((1, 2, 2), (1, 2, 2)),
        ((2, 1, 1), (2, 1, 1)),
    ],
)
def test_make_mesh_shape(asked, shape):
    mesh = meshes.make_mesh(options(*asked), DEVICES)
    assert tuple(mesh.shape.items()) == tuple(zip(("data", "fsdp", "tensor"), shape, strict=True))
    assert mesh.axis_types == (AxisType.Auto,) * 3
    assert set(mesh.devices.flat) == set(DEVICES[: np.prod(shape)])


@pytest.mark.parametrize(
    "asked,message",
    [
        ((-1, 3, 1), r"\(data=-1, fsdp=3, tensor=1\) does not fit 4 device.*must be 4"),
        ((-1, 8, 1), "does not fit 4 device"),
        ((3, 2, 1), "data=3.*must be at most 4"),
        ((0, 1, 1), "config.mesh.data is 0; it must be at least 1 or -1"),
        ((1, -1, 1), "config.mesh.fsdp is -1; it must be at least 1$"),
    ],
)
def test_make_mesh_refuses_what_does_not_fit(asked, message):
    with pytest.raises(UserError, match=message):
        meshes.make_mesh(options(*asked), DEVICES)


def test_shardings_follow_rules_and_replicate_what_does_not_divide():
    mesh = meshes.make_mesh(options(1, 2, 2), DEVICES)
    specs = {
        path: s.spec for path, s in trees.named(meshes.shardings(params(), RULES, mesh)).items()
    }
    assert specs == {
        "text/kernel": P("fsdp", "tensor"),
        "text/odd_kernel": P(None, "tensor"),
        "text/bias": P(),
        "head/kernel": P(),
        "head/scale": P(),
    }


def test_shardings_of_a_dimension_over_two_axes():
    mesh = meshes.make_mesh(options(1, 2, 2), DEVICES)
    rules = ((".*", P(("fsdp", "tensor"))),)
    placed = meshes.shardings({"a": np.ones((8, 3)), "b": np.ones((6, 3))}, rules, mesh)
    assert placed["a"].shard_shape((8, 3)) == (2, 3)
    assert placed["b"].is_fully_replicated


def test_state_inherits_the_shardings_of_its_parameters():
    mesh = meshes.make_mesh(options(1, 2, 2), DEVICES)
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.constant_schedule(1e-3)))
    state = {"rng": jax.random.key(0), "learn": params(), "opt": tx.init(params())}
    placed = trees.named(meshes.shardings(state, RULES, mesh, params()))
    own = trees.named(meshes.shardings(params(), RULES, mesh))
    for path, sharding in own.items():
        for where in ("learn", "opt/1/0/mu", "opt/1/0/nu"):
            assert placed.pop(f"{where}/{path}") == sharding
    assert placed.keys() == {"rng", "opt/1/0/count", "opt/1/2/count"}
    assert all(sharding.is_fully_replicated for sharding in placed.values())


def test_state_inherits_through_masks_and_only_equal_shapes():
    mesh = meshes.make_mesh(options(1, 2, 2), DEVICES)
    labels = {"text": "slow", "head": "fast"}
    tx = optax.multi_transform(
        {"slow": optax.adafactor(1e-3, min_dim_size_to_factor=2), "fast": optax.adam(1e-3)}, labels
    )
    placed = trees.named(meshes.shardings(tx.init(params()), RULES, mesh, params()))
    rows = [path for path in placed if path.endswith("v_row/text/kernel")]
    assert len(rows) == 1 and placed[rows[0]].is_fully_replicated
    assert not any("fast" in path and "/text/" in path for path in placed)


def test_state_prefers_the_longest_ending():
    mesh = meshes.make_mesh(options(1, 4, 1), DEVICES)
    params = {"kernel": np.ones((4, 4)), "text": {"kernel": np.ones((4, 4))}}
    rules = (("kernel", P("fsdp")), ("text/kernel", P(None, "fsdp")))
    placed = meshes.shardings({"mu": params}, rules, mesh, params)["mu"]
    assert placed["kernel"].spec == P("fsdp")
    assert placed["text"]["kernel"].spec == P(None, "fsdp")


def test_optimiser_started_on_placed_parameters_matches_the_declared_shardings():
    mesh = meshes.make_mesh(options(1, 2, 2), DEVICES)
    tx = optax.adamw(1e-3)
    placed = meshes.shardings(params(), RULES, mesh)
    want = meshes.shardings(jax.eval_shape(tx.init, params()), RULES, mesh, params())
    got = jax.jit(tx.init, out_shardings=want)(jax.device_put(params(), placed))
    shard = got[0].mu["text"]["kernel"].addressable_shards[0]
    assert shard.data.shape == (4, 3)


@pytest.mark.parametrize(
    "rules,message",
    [
        ((("text/.*", P()),), "no rule decides 'head/kernel'"),
        (((".*", P("fsdp", None, None)),), "more entries than"),
        (((".*bias", P("model")), (".*", P())), r"of 'text/bias': axes are \('data'"),
    ],
)
def test_shardings_refuse(rules, message):
    with pytest.raises(UserError, match=message):
        meshes.shardings(params(), rules, meshes.make_mesh(options(1), DEVICES))


def test_put_batch_splits_over_data_and_fsdp():
    mesh = meshes.make_mesh(options(1, 2, 2), DEVICES)
    rows = np.arange(24, dtype=np.int32).reshape(4, 6)
    batch = meshes.put_batch({"ids_bl": rows, "valid_b": np.ones(4, bool)}, mesh)
    np.testing.assert_array_equal(batch["ids_bl"], rows)
    assert batch["ids_bl"].sharding == NamedSharding(mesh, P(("data", "fsdp")))
    shards = {s.device: np.asarray(s.data) for s in batch["ids_bl"].addressable_shards}
    for column in range(2):
        for row in range(2):
            np.testing.assert_array_equal(
                shards[mesh.devices[0, row, column]], rows[2 * row : 2 * row + 2]
            )


def test_put_batch_behind_an_accumulation_dimension():
    mesh = meshes.make_mesh(options(4), DEVICES)
    micro = meshes.put_batch({"ids_bl": np.zeros((3, 8, 5))}, mesh, axis=1)
    assert micro["ids_bl"].addressable_shards[0].data.shape == (3, 2, 5)


def test_put_batch_refuses():
    mesh = meshes.make_mesh(options(2, 2), DEVICES)
    with pytest.raises(UserError, match="batch size 6 of 'ids_bl' cannot be split over 4 devices"):
        meshes.put_batch({"ids_bl": np.zeros((6, 2))}, mesh)
    with pytest.raises(ValueError, match=r"'step' has shape .*no batch dimension 0"):
        meshes.put_batch({"step": np.zeros(())}, mesh)


@pytest.mark.parametrize(
    ("shape", "owner", "mine"),
    [
        ((4, 1, 1), [0, 0, 1, 1], [(0, 1), (2, 3)]),
        ((2, 2, 1), [0, 0, 1, 1], [(0, 1), (2, 3)]),
        ((2, 1, 2), [0, 0, 1, 1], [(0,), (1,)]),
        ((2, 1, 2), [0, 1, 0, 1], [(0, 1), (0, 1)]),  # the tensor axis spans the processes
        ((1, 2, 2), [0, 1, 2, 3], [(0,), (0,), (1,), (1,)]),
    ],
)
def test_local_shards_of_every_process(monkeypatch, shape, owner, mine):
    devices = np.array([types.SimpleNamespace(process_index=index) for index in owner])
    axes = dict(zip(meshes.AXES, shape, strict=True))
    mesh = types.SimpleNamespace(devices=devices.reshape(shape), shape=axes)
    for process, parts in enumerate(mine):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        assert meshes.local_shards(mesh) == (parts, shape[0] * shape[1])


def test_local_shards_name_the_rows_that_put_batch_takes():
    mesh = meshes.make_mesh(options(2, 2), DEVICES)
    mine, count = meshes.local_shards(mesh)
    assert (mine, count) == ((0, 1, 2, 3), 4)
    rows = np.arange(8).reshape(8, 1)
    batch = meshes.put_batch({"x": rows}, mesh)["x"]
    shards = {s.device: np.asarray(s.data) for s in batch.addressable_shards}
    for part in mine:
        device = mesh.devices.reshape(count)[part]
        np.testing.assert_array_equal(shards[device], rows[2 * part : 2 * part + 2])


def test_put_whole_is_whole_on_every_device():
    mesh = meshes.make_mesh(options(2, 1, 2), DEVICES)
    tree = {"a": np.arange(6).reshape(2, 3), "b": {"c": np.float32(2.5)}}
    placed = meshes.put_whole(tree, mesh)
    for path, leaf in trees.named(placed).items():
        assert leaf.is_fully_replicated and leaf.sharding.device_set == set(DEVICES)
        np.testing.assert_array_equal(leaf, trees.named(tree)[path])


def test_put_params_lie_as_in_training() -> None:
    mesh = meshes.make_mesh(options(1, 2, 2), DEVICES)
    params = {"kernel": np.arange(32.0).reshape(8, 4), "bias": np.arange(3.0)}
    rules = ((r"kernel", P("fsdp", "tensor")), (r"bias", P("fsdp")))
    placed = meshes.put_params(params, rules, mesh)
    assert {path: leaf.sharding for path, leaf in placed.items()} == meshes.shardings(
        params, rules, mesh
    )
    assert {shard.data.shape for shard in placed["kernel"].addressable_shards} == {(4, 2)}
    assert placed["bias"].is_fully_replicated
    for path, leaf in placed.items():
        np.testing.assert_array_equal(leaf, params[path])
