"""One trained run on a small corpus of own labels, shared by all tests of this folder."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from rich.console import Console

from jaxvsa.core.config import load_config
from jaxvsa.core.files import write_json
from jaxvsa.data.sources import clips
from jaxvsa.data.sources.csmv import read_release
from jaxvsa.data.sources.demo import FEATURES, write_demo
from jaxvsa.data.sources.table import read_table
from jaxvsa.interop.roberta import to_names
from jaxvsa.interop.tensors import save_safetensors
from jaxvsa.workflows.fit import fit
from jaxvsa.workflows.prepare import FeatureSource, prepare
from jaxvsa.workflows.runs import read_trained

TESTS = str(Path(__file__).resolve().parents[1])
if TESTS not in sys.path:  # for `from workflows import small_runs`; last, so that it hides nothing
    sys.path.append(TESTS)

WIDTH = 5
WORDS = ("so cute 🐶", "nice one", "boring", "what a day for a walk", "no", "")
TINY = ("train.steps=4", "train.eval_every=2", "train.log_every=1")


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    """Folder with rows.jsonl and features/: 90 comments under 15 videos, two tasks."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    rows = []
    for i in range(90):
        at = int(rng.integers(len(WORDS)))
        rows.append(
            {
                "key": f"k{i}",
                "video": f"v{i % 15}.mp4",
                "comment": f"{WORDS[at]} {i}" if i % 10 else "",
                "mood": ("up", "down", "flat")[(at + i) % 3],
                "topic": str(at % 2),
                "split": "train" if i < 50 else "dev" if i < 70 else "test",
            }
        )
    lines = [json.dumps(row) + "\n" for row in rows]
    (folder / "rows.jsonl").write_text("".join(lines), encoding="utf-8")
    (folder / "features").mkdir()
    for g in range(15):  # from one row to more than the model's 12
        np.save(folder / "features" / f"v{g}.npy", rng.normal(size=(g + 1, WIDTH)).astype("f4"))
    return folder


@pytest.fixture(scope="session")
def prepared(corpus, tmp_path_factory) -> Path:
    """The corpus, prepared with features."""
    out = tmp_path_factory.mktemp("prepared") / "own"
    source = FeatureSource(corpus / "features", "net")
    prepare(read_table(corpus / "rows.jsonl", ["mood", "topic"]), out, source)
    return out


@pytest.fixture(scope="session")
def tiny(prepared) -> Callable[..., ConfigDict]:
    """Function: `--config.` overrides without that prefix -> a configuration on the corpus."""
    spec = Path(__file__).parents[2] / "configs" / "vccsa.py"

    def make(*overrides: str) -> ConfigDict:
        given = (*TINY, f"data.root={prepared}", *overrides)
        return load_config(f"{spec}:tiny", [f"--config.{override}" for override in given])

    return make


@pytest.fixture(scope="session")
def trained_run(tiny, tmp_path_factory) -> Path:
    """A finished run; tests must not change it."""
    run = tmp_path_factory.mktemp("runs") / "tiny"
    fit(tiny(), run, Console(quiet=True))
    return run


@pytest.fixture(scope="session")
def weights(trained_run, tmp_path_factory) -> Path:
    """Hugging Face folder with the text encoder and the tokenizer of the run."""
    folder = tmp_path_factory.mktemp("weights")
    trained = read_trained(trained_run)
    text = trained.config["model"]["text"]
    config = {
        "model_type": "roberta",
        "vocab_size": trained.facts.vocab_size,
        "hidden_size": text["width"],
        "num_hidden_layers": text["num_layers"],
        "num_attention_heads": text["num_heads"],
        "intermediate_size": text["mlp_width"],
        "max_position_embeddings": text["max_positions"],
        "type_vocab_size": text["num_types"],
        "layer_norm_eps": text["norm_eps"],
        "pad_token_id": trained.facts.pad_id,
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
    }
    write_json(folder / "config.json", config)
    codec = json.loads(trained.codec.to_json())
    (folder / "tokenizer.json").write_text(codec["tokenizer"], encoding="utf-8")
    values = jax.tree.map(np.zeros_like, trained.params["text"])
    save_safetensors(folder / "model.safetensors", to_names(values))
    return folder


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared synthetic corpus of 30 videos, its release beside it."""
    folder = tmp_path_factory.mktemp("synthetic")
    write_demo(folder / "release", seed=1, num_videos=30)
    source = FeatureSource(folder / "release" / FEATURES, "demo")
    prepare(read_release(folder / "release"), folder / "prepared", source)
    return folder / "prepared"


@pytest.fixture(scope="session")
def clips_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared questions about small moving squares."""
    from workflows import small_questions as small

    found = clips.order_clips(1, small.SIZES)
    return small.prepare_clips(found, tmp_path_factory.mktemp("clips") / "prepared")


@pytest.fixture(scope="session")
def text_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared questions without clips, in two folds."""
    from workflows import small_questions as small

    return small.prepare_text(tmp_path_factory.mktemp("questions") / "prepared")


@pytest.fixture(scope="session")
def image_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that trained all weights of an image model; tests must not change it."""
    from workflows import small_questions as small

    folder = tmp_path_factory.mktemp("image")
    root = small.prepare_clips(clips.half_frames(1, small.SIZES), folder / "prepared")
    more = ("train.steps=2", "train.select_on=", small.ROUTED)
    small.fit("demo_base", root, folder / "run", *more)
    return folder / "run"


@pytest.fixture(scope="session")
def image_folder(image_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model as a Hugging Face folder; tests must not change it."""
    from workflows import small_questions as small

    return small.write_folder(image_run, tmp_path_factory.mktemp("folder") / "instructblip")
