"""The image model to start from: a run and a Hugging Face folder are the same; bad ones."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from workflows import small_questions as small

from jaxvsa.core import trees
from jaxvsa.core.config import to_plain
from jaxvsa.core.errors import UserError
from jaxvsa.core.files import write_json
from jaxvsa.interop.blip import without_words
from jaxvsa.interop.tensors import load_safetensors, save_safetensors
from jaxvsa.workflows.assemble import assemble
from jaxvsa.workflows.image_model import _check_base, is_run, read_base
from jaxvsa.workflows.questions import Assembled
from jaxvsa.workflows.runs import read_trained


def opened(root: Path, base: Path, *more: str, variant: str = "demo") -> Assembled:
    given = (f"weights.base={base}", "data.protocol=demo", *more)
    return assemble(to_plain(small.config(variant, root, *given)), root)


def test_run_and_folder_are_told_apart(image_run: Path, image_folder: Path, tmp_path: Path) -> None:
    assert is_run(image_run) and not is_run(image_folder) and not is_run(tmp_path)


def test_sizes_and_tokenizers_are_those_of_the_base(
    clips_root: Path, image_run: Path, image_folder: Path
) -> None:
    theirs = read_trained(image_run)
    for base in (image_run, image_folder):
        more = ("model.decoder.width=64", "model.qformer.num_queries=9", "model.vision.width=8")
        data = opened(clips_root, base, *more)
        for section in ("vision", "decoder"):
            assert data.config["model"][section] == theirs.config["model"][section]
        assert data.config["model"]["qformer"]["num_queries"] == 4
        assert data.config["model"]["qformer"]["temporal"] is True  # a choice, not a size
        assert data.codec.to_json() == theirs.codec.to_json()
        assert data.facts.vocab_size == theirs.facts.vocab_size
        assert (data.facts.eos_id, data.facts.pad_id) == (theirs.facts.eos_id, theirs.facts.pad_id)


def test_run_and_folder_give_the_same_weights(
    clips_root: Path, image_run: Path, image_folder: Path
) -> None:
    found = []
    for base in (image_run, image_folder):
        data = opened(clips_root, base)
        found.append(read_base(data.config, data.base, data.fields, True))
    assert found[0].keys() == found[1].keys()
    for path, leaf in found[0].items():
        np.testing.assert_array_equal(found[1][path], leaf, err_msg=path)
    want = trees.named(read_trained(image_run).params)
    assert set(want) - set(found[0]) == {"qformer/query_position", "qformer/frame_position"}


def test_parts_that_are_not_needed_are_not_read(
    clips_root: Path, image_run: Path, image_folder: Path
) -> None:
    for base in (image_run, image_folder):
        data = opened(clips_root, base)
        found = read_base(data.config, data.base, data.fields, False)
        assert {path.split("/")[0] for path in found} == {"qformer", "project", "decoder"}
        data.config["model"]["variant"] = "text"
        found = read_base(data.config, data.base, data.fields, False)
        assert {path.split("/")[0] for path in found} == {"decoder"}


def test_qformer_without_text_takes_what_it_needs_of_one_with(
    clips_root: Path, image_run: Path, image_folder: Path
) -> None:
    """The ablation "w/o Fusion": no words, and the rest of the image model's weights."""
    words = ("qformer/word", "qformer/position")
    for base in (image_run, image_folder):
        whole = opened(clips_root, base)
        want = read_base(whole.config, whole.base, whole.fields, True)
        data = opened(clips_root, base, "model.max_words=0", "data.llm_text=full")
        found = read_base(data.config, data.base, data.fields, True)
        assert set(want) - set(found) == {
            path for path in want if path in words or "mlp_word" in path
        }
        for path, leaf in found.items():
            np.testing.assert_array_equal(leaf, want[path], err_msg=path)


def language_alone(source: Path, out: Path) -> Path:
    """The folder of the language model of an InstructBLIP folder."""
    shutil.copytree(source, out)
    shutil.rmtree(out / "qformer_tokenizer")
    config = json.loads((out / "config.json").read_text())
    write_json(out / "config.json", config["text_config"])
    prefix = "language_model."
    tensors = {
        name.removeprefix(prefix): tensor for name, tensor in load_safetensors(source).items()
        if name.startswith(prefix)
    }  # fmt: skip
    save_safetensors(out / "model.safetensors", tensors)
    return out


def test_language_model_alone_answers_without_video(
    clips_root: Path, image_folder: Path, tmp_path: Path
) -> None:
    base = language_alone(image_folder, tmp_path / "llama")
    with pytest.raises(UserError, match="is a language model alone; name an InstructBLIP or"):
        opened(clips_root, base)
    data = opened(clips_root, base, variant="mustard_text")
    found, name = data.given(None)
    assert name == str(base) and {path.split("/")[0] for path in found} == {"decoder"}


def blip2(folder: Path) -> None:
    """Tensors and fields of a Q-Former that reads no text."""
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", {**config, "model_type": "blip-2"})
    tensors = {k: np.array(v) for k, v in without_words(load_safetensors(folder)).items()}
    save_safetensors(folder / "model.safetensors", tensors)


def test_blip2_reads_no_text(clips_root: Path, image_folder: Path, tmp_path: Path) -> None:
    base = tmp_path / "blip2"
    shutil.copytree(image_folder, base)
    blip2(base)
    with pytest.raises(UserError, match="is BLIP-2, whose Q-Former reads no text; set"):
        opened(clips_root, base)
    data = opened(clips_root, base, "model.max_words=0")
    assert data.facts.words_size == 0
    found, _ = data.given(None)
    assert not any("mlp_word" in path or path == "qformer/word" for path in found)
    assert "ids_gw" not in data.examples("dev").batch(
        np.arange(1), np.ones(1, bool), data.sizes(), 1
    )


def test_run_that_is_no_image_model_is_refused(
    clips_root: Path, image_run: Path, trained_run: Path, tmp_path: Path
) -> None:
    run = tmp_path / "tuned"
    more = ("train.steps=1", "train.select_on=")
    small.fit("demo", clips_root, run, f"weights.base={image_run}", *more)
    with pytest.raises(UserError, match="tuned trained adapters on top of a model; name an image"):
        opened(clips_root, run)
    with pytest.raises(UserError, match="is a run of vccsa; name an image model"):
        opened(clips_root, trained_run)
    record = json.loads((image_run / "config.json").read_text())["config"]
    moved = {**record, "weights": {**record["weights"], "positions": "both"}}
    with pytest.raises(UserError, match="has positions that learn"):
        _check_base("runs/x", moved, "both")
    for section, key, value, what in (
        ("lora", "rank", 4, "has low-rank changes"),
        ("routing", "enabled", True, "has routing"),
        ("qformer", "temporal", True, "has attention over frames"),
    ):
        config = copy.deepcopy(record)
        _check_base("runs/x", config, "both")
        config["model"][section][key] = value
        with pytest.raises(UserError, match=f"runs/x {what}; name an image model"):
            _check_base("runs/x", config, "both")
        _check_base("runs/x", config, "text")


def small_table(folder: Path) -> None:
    """Fewer rows than the tokenizer has ids."""
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["vocab_size"] -= 1
    write_json(folder / "config.json", config)


def small_words(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["qformer_config"]["vocab_size"] -= 1
    write_json(folder / "config.json", config)


def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def no_words(folder: Path) -> None:
    shutil.rmtree(folder / "qformer_tokenizer")


def another_end(folder: Path) -> None:
    write_json(folder / "tokenizer_config.json", {"eos_token": "<end>"})


def no_run(folder: Path) -> None:
    (folder / "checkpoints").mkdir()


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (small_table, r"the tokenizer has \d+ ids, but .* only \d+ rows; take tokenizer and"),
        (small_words, r"the tokenizer has \d+ ids, but .* only \d+ rows; take tokenizer and"),
        (no_tokenizer, "has no tokenizer.json; write one with transformers"),
        (no_words, "qformer_tokenizer: no tokenizer; expected tokenizer.json"),
        (another_end, "no token '<end>', named as its eos_token"),
        (no_run, "config.json"),
    ],
)
def test_base_that_does_not_fit_is_one_line(
    clips_root: Path, image_folder: Path, tmp_path: Path, spoil: Callable[[Path], None], match: str
) -> None:
    base = tmp_path / "base"
    shutil.copytree(image_folder, base)
    spoil(base)
    with pytest.raises(UserError, match=match) as caught:
        opened(clips_root, base)
    assert "\n" not in str(caught.value)
