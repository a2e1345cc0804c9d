"""The first state of a run: what comes from an image model, what is new, what does not fit."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from workflows import small_questions as small

from jaxvsa.core import mesh as meshes
from jaxvsa.core import trees
from jaxvsa.core.errors import UserError
from jaxvsa.interop.tensors import load_safetensors, save_safetensors
from jaxvsa.training.state import State
from jaxvsa.workflows.runs import read_trained
from jaxvsa.workflows.setup import check_fit, first_state, prepare_run


def begun(root: Path, run: Path, *more: str, devices: Any = None) -> State:
    setup = prepare_run(small.config("demo", root, small.ROUTED, *more), run, devices)
    placed = meshes.shardings(
        setup.abstract, setup.system.partition, setup.mesh, params=setup.abstract.params()
    )
    return first_state(setup, placed)


def test_new_model_is_the_image_model_and_what_it_lacks(
    clips_root: Path, image_run: Path, tmp_path: Path
) -> None:
    state = begun(clips_root, tmp_path, f"weights.base={image_run}")
    want, learn = trees.named(read_trained(image_run).params), trees.named(state.learn)
    held = trees.named(state.held)
    assert set(want) == set(held) | {"qformer/query_position", "qformer/frame_position"}
    for path, leaf in held.items():
        np.testing.assert_array_equal(leaf, want[path], err_msg=path)
    assert int(state.step) == 0
    for path, leaf in learn.items():
        begins_at_zero = path.endswith(("/up", "_position", "outer/kernel"))
        assert np.any(leaf) != begins_at_zero, path


def test_folder_is_read_straight_to_its_devices(
    clips_root: Path, image_run: Path, image_folder: Path, tmp_path: Path
) -> None:
    """The same state as from the run, in bfloat16 and split over four devices."""
    more = ("model.frozen.param=bfloat16", "mesh.fsdp=4")
    states = [
        begun(clips_root, tmp_path, f"weights.base={base}", *more, devices=jax.devices()[:4])
        for base in (image_run, image_folder)
    ]
    jax.tree.map(np.testing.assert_array_equal, states[0].held, states[1].held)
    kernel = states[1].held["decoder"]["layers"]["up"]["kernel"]
    assert kernel.dtype == "bfloat16"
    assert {shard.data.size for shard in kernel.addressable_shards} == {kernel.size // 4}
    assert states[1].held["qformer"]["queries"].dtype == "float32"


@pytest.mark.parametrize(
    ("name", "edit", "match"),
    [
        (
            "language_projection.bias",
            lambda x: x[:-1],
            r"the weights do not fit config.model: 'project/bias' is \(47,\), not \(48,\)",
        ),
        (
            "qformer.encoder.layer.0.crossattention.attention.key.weight",
            lambda x: x[:, :-1],
            r"'qformer/layer_0/cross/key/kernel' is \(31, 48\), not \(32, 48\)",
        ),
        ("query_tokens", lambda x: x[:, :-1], r"'query_tokens' has shape \(3, 48\)"),
    ],
)
def test_tensor_of_another_shape_is_one_line(
    clips_root: Path, image_folder: Path, tmp_path: Path, name: str, edit: Any, match: str
) -> None:
    base = tmp_path / "base"
    shutil.copytree(image_folder, base)
    tensors = dict(load_safetensors(base))
    save_safetensors(base / "model.safetensors", {**tensors, name: edit(tensors[name])})
    with pytest.raises(UserError, match=match) as caught:
        begun(clips_root, tmp_path / "run", f"weights.base={base}")
    assert "\n" not in str(caught.value)


def test_run_of_another_model_is_no_start(
    clips_root: Path, image_run: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"config.init_from: .* does not fit config.model"):
        begun(clips_root, tmp_path, *small.SCRATCH, "data.vocab_size=261",
              f"init_from={image_run}")  # fmt: skip


def test_only_what_is_new_may_be_absent() -> None:
    here = {"a/new": np.zeros(2), "a/old": np.zeros(3)}
    check_fit(here, {"a/old": np.zeros(3)}, "there", "a/new")
    for found, match in (
        ({"a/new": np.zeros(2)}, r"there does not fit config.model: 'a/old' is absent, not \(3,\)"),
        ({"a/old": np.zeros(3), "b": np.zeros(1)}, r"'b' is \(1,\), not absent"),
        ({"a/old": np.zeros(3), "a/new": np.zeros(1)}, r"'a/new' is \(1,\), not \(2,\)"),
    ):
        with pytest.raises(UserError, match=match):
            check_fit(here, found, "there", "a/new")


def test_start_from_a_run_with_other_frozen_weights_is_refused(
    clips_root: Path, image_run: Path, image_folder: Path, tmp_path: Path
) -> None:
    """No checkpoint of such a run could be read: it would look for them in its base."""
    more = ("train.steps=1", "train.select_on=", small.ROUTED)
    small.fit("demo", clips_root, tmp_path / "tuned", f"weights.base={image_run}", *more)
    source, given = f"init_from={tmp_path / 'tuned'}", ("data.resident=no",)
    begun(clips_root, tmp_path / "a", f"weights.base={image_run}", source, *given)
    other = tmp_path / "other"
    shutil.copytree(image_folder, other)
    small.edit_tensor(other, "language_projection.bias")
    with pytest.raises(UserError, match=r"'project/bias' is frozen and differs between .*tuned"):
        begun(clips_root, tmp_path / "b", f"weights.base={other}", source, *given)
