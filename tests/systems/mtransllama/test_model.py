"""The model: what padding and other rows must not change, writing, pixels, sizes of the paper."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import pytest
from systems.mtransllama import tiny

from jaxvsa.core.errors import UserError
from jaxvsa.layers.tokens import Words
from jaxvsa.systems.base import outputs
from jaxvsa.systems.mtransllama.model import Clip, ModelOptions, MTransLLAMA, write


@functools.cache
def whole() -> tuple[MTransLLAMA, Any, dict[str, Any]]:
    """Model, parameters and arguments of the tiny configuration."""
    system = tiny.system()
    return tiny.model(), tiny.params(system), tiny.arguments(tiny.batch(system))


@functools.cache
def wanted() -> np.ndarray:
    """Scores of the real answer tokens."""
    model, params, given = whole()
    return np.asarray(tiny.answer_logits(model, params, given))[given["keep_ba"]]


def scores(given: dict[str, Any]) -> np.ndarray:
    model, params, _ = whole()
    return np.asarray(tiny.answer_logits(model, params, given))[given["keep_ba"]]


def assert_close(got: Any, want: Any) -> None:
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_inputs_matter() -> None:
    """Or else the tests below would prove nothing."""
    _, _, given = whole()
    assert wanted().std() > 0.5
    clip = given["clip"]
    other_words = clip.words.replace(ids_gw=np.flip(clip.words.ids_gw, axis=1))
    other_frames = np.flip(clip.frames_btpf, axis=1)
    for changes in ({"words": other_words}, {"frames_btpf": other_frames}):
        clip = given["clip"].replace(**changes)
        assert np.abs(scores({**given, "clip": clip}) - wanted()).max() > 1e-2
    for name in ("prompt_bn", "answer_ba"):
        assert np.abs(scores({**given, name: given[name] + 1}) - wanted()).max() > 1e-2


def test_what_stands_in_padding_changes_nothing() -> None:
    _, _, given = whole()
    words = given["clip"].words
    used_w = np.isin(np.arange(words.ids_gw.shape[1]), words.word_bl)
    assert not any(keep.all() for keep in (given["keep_bn"], given["keep_ba"], used_w))
    other = {
        "prompt_bn": np.where(given["keep_bn"], given["prompt_bn"], 9),
        "answer_ba": np.where(given["keep_ba"], given["answer_ba"], 11),
        "clip": given["clip"].replace(
            words=words.replace(ids_gw=np.where(used_w, words.ids_gw, 13))
        ),
    }
    assert_close(scores({**given, **other}), wanted())


def test_more_padding_changes_nothing() -> None:
    _, _, given = whole()

    def wider(array: np.ndarray, left: int, right: int, value: int = 0) -> np.ndarray:
        return np.pad(array, ((0, 0), (left, right)), constant_values=value)

    words = given["clip"].words
    words = Words(wider(words.ids_gw, 0, 5), wider(words.word_bl, 0, 3, -1))
    other = {"clip": given["clip"].replace(words=words)}
    for name, sides in {"prompt_bn": (5, 0), "keep_bn": (5, 0), "answer_ba": (0, 2),
                        "keep_ba": (0, 2)}.items():  # fmt: skip
        other[name] = wider(given[name], *sides)
    assert_close(scores(other), wanted())


def test_rows_of_a_batch_do_not_see_each_other() -> None:
    model, params, given = whole()
    others = tiny.arguments(tiny.batch(tiny.system(), seed=5))
    words, first = given["clip"].words, tiny.SIZES["l"]
    assert words.word_bl[0].tolist() == others["clip"].words.word_bl[0].tolist() == [*range(first)]
    mixed = jax.tree.map(lambda mine, theirs: np.concatenate([mine[:1], theirs[1:]]), given, others)
    ids_gw = others["clip"].words.ids_gw.copy()
    ids_gw[:, :first] = words.ids_gw[:, :first]
    clip = mixed["clip"]
    mixed["clip"] = clip.replace(words=clip.words.replace(ids_gw=ids_gw))
    got = tiny.answer_logits(model, params, mixed)[0]
    assert_close(got[given["keep_ba"][0]], wanted()[: given["keep_ba"][0].sum()])


def test_what_comes_later_does_not_change_a_score() -> None:
    model, params, given = whole()
    changed = {**given, "answer_ba": given["answer_ba"].copy(),
               "keep_ba": np.ones_like(given["keep_ba"])}  # fmt: skip
    changed["answer_ba"][:, 1:] += 1
    got = tiny.answer_logits(model, params, changed)
    want = tiny.answer_logits(model, params, {**changed, "answer_ba": given["answer_ba"]})
    assert_close(got[:, :2], want[:, :2])
    assert np.abs(np.asarray(got - want)[:, 2:]).max() > 1e-2


def stepwise(count: int) -> np.ndarray:
    """The likeliest tokens one after the other, each by a forward pass over everything."""
    model, params, given = whole()
    token_ba = np.zeros((len(given["prompt_bn"]), count), np.int32)
    for at in range(count):
        now = {**given, "answer_ba": token_ba, "keep_ba": np.ones(token_ba.shape, bool)}
        token_ba[:, at] = np.argmax(tiny.answer_logits(model, params, now)[:, at], axis=-1)
    return token_ba


@pytest.mark.parametrize("ends", ["nowhere", "somewhere"])
def test_written_tokens_are_the_likeliest_of_full_forwards(ends: str) -> None:
    model, params, given = whole()
    want = stepwise(model.options.max_new)
    unused = next(i for i in range(tiny.VOCAB) if not (want == i).any())
    eos_id = unused if ends == "nowhere" else int(want[0, 1])
    if ends == "somewhere":
        for row in want:
            behind = np.flatnonzero(row == eos_id)[:1] + 1
            row[behind[0] if behind.size else len(row) :] = tiny.PAD
        assert (want[0, 2:] == tiny.PAD).all() and want[0, 1] == eos_id
    prompt = given["clip"], given["prompt_bn"], given["keep_bn"]

    def run(params: Any, prompt: Any) -> jax.Array:
        before: Any = model.apply({"params": params}, *prompt, True, method=model.prefix)
        return write(model, params, *before, eos_id=eos_id, pad_id=tiny.PAD)

    np.testing.assert_array_equal(jax.jit(run)(params, prompt), want)


@pytest.mark.parametrize("frozen", ["float32", "bfloat16"])
def test_stored_patches_give_what_pixels_give_bit_for_bit(frozen: str) -> None:
    kind = {"model": {"frozen": {"param": frozen, "compute": frozen}}}
    pixels = tiny.facts(video="pixels")
    model = tiny.model(pixels, **kind)
    seen, stored = tiny.system(pixels, **kind), tiny.system(**kind)
    params = tiny.params(seen)
    batch = tiny.batch(seen)
    see = jax.jit(lambda pixel: model.apply({"params": params}, pixel, method=model.see))
    patches = see(batch["pixel_bti"])
    assert patches.dtype == "bfloat16" and np.ptp(np.asarray(patches, np.float32)) > 1
    cached = {k: v for k, v in batch.items() if k not in ("pixel_bti", "frame_bt")}
    cached["frames_btpf"] = np.asarray(patches)
    rest = {part: tree for part, tree in params.items() if part != "vision"}
    found = [
        jax.jit(functools.partial(outputs, of, "classify"))(*given)["way"]
        for of, given in ((seen, (params, batch)), (stored, (rest, cached)))
    ]
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize(
    ("num_frames", "aggregate"),
    [(1, "mean"), (4, "mean"), (8, "mean"), (16, "mean"), (4, "concat")],
)
def test_visual_tokens_of_the_paper_whatever_the_number_of_frames(
    num_frames: int, aggregate: str
) -> None:
    qformer = {"max_frames": 16, "aggregate": aggregate}
    given = tiny.facts(vocab_size=32001, words_size=30523, feature_width=1408)
    model = tiny.model(
        given, variant="mustard", model={"num_frames": num_frames, "qformer": qformer}
    )
    shapes = [
        ((2, num_frames, 257, 1408), "bfloat16"), ((1, 64), "int32"), ((2, 40), "int32"),
        ((2,), "int32"),
    ]  # fmt: skip
    frames_btpf, ids_gw, word_bl, example_b = (jax.ShapeDtypeStruct(*shape) for shape in shapes)
    clip = Clip(None, frames_btpf, Words(ids_gw, word_bl), example_b)
    found, _ = jax.eval_shape(
        lambda clip: model.init_with_output(
            jax.random.key(0), clip, deterministic=True, method=model.visual
        ),
        clip,
    )
    count = 32 * num_frames if aggregate == "concat" else 32
    assert found.shape == (2, count, 4096) and found.dtype == "bfloat16"
    assert model.options.num_visual == count


def test_language_model_alone_has_no_visual_token() -> None:
    model = tiny.model(tiny.facts(video=""), model={"variant": "text"}, weights={"learn": "all"})
    assert model.options.num_visual == 0 and not model.options.reads_words


def test_clip_without_anything_to_see_is_refused() -> None:
    model, params, given = whole()
    clip = given["clip"].replace(frames_btpf=None)
    with pytest.raises(ValueError, match="neither pixels nor features"):
        model.apply({"params": params}, clip, True, method=model.visual)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"num_frames": 0}, r"num_frames is 0; it must be from 1 to qformer\.max_frames, 8"),
        ({"num_frames": 9}, r"num_frames is 9; it must be from 1 to qformer\.max_frames, 8"),
        ({"max_words": 65}, r"max_words is 65, but qformer\.max_positions is 64"),
        ({"max_prompt": 0}, r"max_prompt is 0; 1 is the least"),
        ({"max_answer": 0}, r"max_answer is 0; 1 is the least"),
        ({"max_new": 0}, r"max_new is 0; 1 is the least"),
        ({"short": "loop"}, r"config\.model\.short: .*'loop'"),
        ({"long": "right"}, r"config\.model\.long: .*'right'"),
        ({"lora": {"sites": ["spcae"]}}, r"lora\.sites: unknown 'spcae'; known: space, time"),
        ({"routing": {"routing": "hard"}}, "hard' with routing.combine='hadamard'"),
        ({"routing": {"orders": [1, 2]}}, "the first must be 0"),
        ({"decoder": {"num_layers": "two"}}, r"config\.model\.decoder\.num_layers"),
    ],
)
def test_options_refuse(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(UserError, match=match) as caught:
        ModelOptions.of(tiny.config(model=changes)["model"], tiny.WORDS)
    assert "\n" not in str(caught.value)


def test_hard_routing_is_accepted_with_the_other_combinations() -> None:
    for combine in ("mixture", "log"):
        section = tiny.config(model={"routing": {"routing": "hard", "combine": combine}})["model"]
        assert ModelOptions.of(section, tiny.WORDS).routing.routing == "hard"


def test_words_are_read_only_where_there_are_some() -> None:
    options = ModelOptions.of(tiny.config()["model"], tiny.WORDS)
    assert options.reads_words and options.qformer.vocab_size == tiny.WORDS
    none = ModelOptions.of(tiny.config(model={"max_words": 0})["model"], tiny.WORDS)
    assert not none.reads_words and none.qformer.vocab_size == 0
    assert dataclasses.replace(options, variant="text").reads_words is False
