"""The vision transformer runs once: the same numbers, and nothing that others have made."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from workflows import small_questions as small
from workflows.trajectories import assert_same, trajectory

from jaxvsa import prepare as door
from jaxvsa.core.errors import UserError
from jaxvsa.core.precision import Precision
from jaxvsa.data.features import load_npy
from jaxvsa.data.prepared import Prepared
from jaxvsa.data.questions import VideoQuestion
from jaxvsa.workflows import predict_answers
from jaxvsa.workflows.patches import make_patches, see_frames
from jaxvsa.workflows.predict import load


def cache(root: Path, weights: Path, out: Path, num_frames: int = 4) -> Path:
    make_patches(root, weights, out, num_frames, Precision(), Console(quiet=True))
    return out


@pytest.fixture(scope="module")
def cached(clips_root: Path, image_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cache(clips_root, image_run, tmp_path_factory.mktemp("patches") / "cached")


def test_cache_holds_every_patch_of_every_clip(clips_root: Path, cached: Path) -> None:
    before, after = Prepared.open(clips_root), Prepared.open(cached)
    assert after.protocols == before.protocols and after.labels == before.labels
    pixels, patches = before.features(), after.features()
    assert patches.dtype == "bfloat16" and list(patches.row) == list(pixels.row)
    np.testing.assert_array_equal(patches.count_g, 17 * pixels.count_g)
    one, other = (before.comments("demo", "test"), after.comments("demo", "test"))
    assert (one.key, one.extra) == (other.key, other.extra)


def test_training_is_the_same_with_and_without_the_cache(
    clips_root: Path, cached: Path, image_run: Path, tmp_path: Path
) -> None:
    given = small.flags(clips_root, f"weights.base={image_run}")[1:]
    found = [
        trajectory(root, tmp_path, 1, *given, predict=False, spec=f"{small.SPEC}:demo")
        for root in (clips_root, cached)
    ]
    assert_same(*found)
    np.testing.assert_allclose(found[1]["loss"], found[0]["loss"], rtol=1e-6)


def test_cache_of_a_folder_and_of_the_run_it_came_from_are_the_same(
    clips_root: Path, cached: Path, image_run: Path, tmp_path: Path
) -> None:
    folder = small.write_folder(image_run, tmp_path / "folder")
    found = Prepared.open(cache(clips_root, folder, tmp_path / "out"))
    assert found.manifest == Prepared.open(cached).manifest
    small.edit_tensor(folder, "vision_model.post_layernorm.weight")
    again = Prepared.open(cache(clips_root, folder, tmp_path / "other"))
    assert again.manifest["encoder"] != found.manifest["encoder"]


@pytest.mark.parametrize(
    ("given", "match"),
    [
        (("model.num_frames=2",), r"4 frames', the model reads '.*2 frames'; .*prepare patches"),
        (("model.frozen.compute=bfloat16",), "float32/bfloat16.*make it again"),
        (
            ("weights.base=", "weights.learn=all"),
            "holds patches of .*name the weights that made them",
        ),
    ],
)
def test_cache_for_another_model_is_refused(
    cached: Path, image_run: Path, tmp_path: Path, given: tuple[str, ...], match: str
) -> None:
    with pytest.raises(UserError, match=match):
        small.fit("demo", cached, tmp_path / "run", f"weights.base={image_run}", *given)


def test_cache_of_other_weights_is_refused(cached: Path, image_run: Path, tmp_path: Path) -> None:
    folder = small.write_folder(image_run, tmp_path / "folder")
    small.edit_tensor(folder, "vision_model.encoder.layers.1.mlp.fc1.bias", 2)
    with pytest.raises(UserError, match="was made by 'vision transformer"):
        small.fit("demo", cached, tmp_path / "run", f"weights.base={folder}")


def test_only_frames_can_be_encoded(cached: Path, image_run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="already exists: choose another --out"):
        cache(tmp_path / "no data", image_run, cached)
    for count in ("0", "-1", "two"):
        given = ["patches", "--data", "x", "--weights", "y", "--out", "z", "--num-frames", count]
        with pytest.raises(SystemExit):
            door.main(given)
    with pytest.raises(UserError, match="holds no frames; prepare it with --frames"):
        cache(cached, image_run, tmp_path / "out")
    with pytest.raises(UserError, match="holds no frames"):
        cache(small.prepare_text(tmp_path / "text"), image_run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_door_prepares_annotations_and_frames(mustard_path: Path, tmp_path: Path) -> None:
    frames = tmp_path / "frames"
    args = ["mustard", "--root", str(mustard_path), "--out", str(tmp_path / "out")]
    with pytest.raises(UserError, match=r"1_10004\.npy: missing; extract the frames"):
        door.main([*args, "--frames", str(frames)])
    door.main([*args, "--frames", "none"])
    found = Prepared.open(tmp_path / "out")
    assert found.protocols["released5_0"] == {"train": 552, "dev": 0, "test": 138}
    assert found.protocols["mustard_star"] == {"train": 414, "dev": 138, "test": 138}
    shutil.rmtree(tmp_path / "out")


@pytest.mark.parametrize(
    ("array", "match"),
    [
        (np.zeros((2, 4, 4, 3), np.float32), r"holds float32 .*; expected uint8"),
        (np.zeros((2, 4, 5, 3), np.uint8), r"expected uint8 \(frames, side, side"),
        (np.zeros((0, 4, 4, 3), np.uint8), "holds 0 frames"),
        (np.zeros((2, 8, 8, 3), np.uint8), "resize all to one size"),
        (np.zeros(3, np.uint8), "expected uint8"),
    ],
)
def test_frames_of_another_kind_are_refused(tmp_path: Path, array: np.ndarray, match: str) -> None:
    from jaxvsa.workflows.prepare_questions import read_frames

    np.save(tmp_path / "a.npy", np.zeros((1, 4, 4, 3), np.uint8))
    np.save(tmp_path / "b.npy", array)
    with pytest.raises(UserError, match=match):
        read_frames(tmp_path, ["a.mp4", "b.mp4"])
    (tmp_path / "b.npy").write_bytes(b"no array")
    with pytest.raises(UserError, match=r"b\.npy: not a plain numeric .* \(no header of"):
        read_frames(tmp_path, ["a.mp4", "b.mp4"])


def test_frames_are_answered_by_a_model_that_was_trained_on_patches(
    clips_root: Path, cached: Path, image_run: Path, tmp_path: Path
) -> None:
    folder = small.write_folder(image_run, tmp_path / "base")
    small.fit("demo", cached, tmp_path / "run", f"weights.base={folder}")
    model = load(tmp_path / "run")
    assert isinstance(model, predict_answers.Model)
    pixels, patches = Prepared.open(clips_root).features(), Prepared.open(cached).features()
    names = list(pixels.row)[:4]
    frames = {name: pixels.of(name).reshape(-1, 16, 16, 3) for name in names}
    seen = {name: patches.of(name).reshape(4, 17, -1) for name in names}
    asked = [VideoQuestion(name, name, "left or right?", "") for name in names]
    assert model.answer(asked, frames) == model.answer(asked, seen)
    manifest = Prepared.open(cached).manifest
    made = see_frames(frames, manifest["encoder"], str(folder), model.config["model"])
    for name in names:
        np.testing.assert_array_equal(made[name], seen[name])
    with pytest.raises(UserError, match=r"reads patches, bfloat16 \(frames, 17, 32\)"):
        model.answer(asked, {**seen, names[0]: np.swapaxes(seen[names[0]], 0, 1)})
    np.save(tmp_path / "clip.npy", seen[names[0]])
    np.testing.assert_array_equal(load_npy(tmp_path / "clip.npy"), seen[names[0]])
    nothing = {**seen, names[0]: np.full_like(seen[names[0]], np.nan)}
    with pytest.raises(UserError, match="holds values that are not finite"):
        model.answer(asked, nothing)
    with pytest.raises(UserError, match=r"the model reads frames of \(16, 16, 3\); resize them"):
        model.answer(asked, {**frames, names[0]: np.zeros((4, 20, 20, 3), np.uint8)})
    small.edit_tensor(folder, "vision_model.post_layernorm.weight")
    with pytest.raises(UserError, match="holds other weights than made the patches of the run"):
        model.answer(asked, frames)
