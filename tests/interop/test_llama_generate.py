"""Generation and ranking against transformers: token ids, scores, log-softmax."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interop.llama_oracle import CONFIG, EOS, PAD, make, random_state, torch_model

from jaxvsa.interop.llama import fields_of, read_decoder
from jaxvsa.layers.decoder import Cache, Decoder
from jaxvsa.layers.generate import beam_search, generate, log_likelihood

pytestmark = pytest.mark.torch
TOKENS = 20


def talkative(seed: int) -> dict[str, np.ndarray]:
    """Random tensors of a model that ends some of its texts early and some never."""
    state = random_state(CONFIG, seed)
    state["lm_head.weight"] *= 2
    state["lm_head.weight"][EOS] *= 1.5
    return state


def prompts(seed: int, side: str = "left") -> tuple[np.ndarray, np.ndarray]:
    """Embeddings of four prompts of 3 to 7 columns, visual tokens and words alike."""
    x_bld = np.random.default_rng(seed).normal(size=(4, 7, 16)).astype(np.float32)
    start_b = np.array([0, 2, 4, 1])[:, None]
    keep_bl = np.arange(7)[None] >= start_b
    return x_bld, keep_bl if side == "left" else keep_bl[:, ::-1]


@functools.partial(jax.jit, static_argnums=(0,), static_argnames=("num_beams", "length_penalty"))
def ours(decoder: Decoder, params: Any, x_bld: Any, keep_bl: Any, **options: Any) -> jax.Array:
    ends = {"num_tokens": TOKENS, "eos_id": EOS, "pad_id": PAD}
    return generate(decoder, params, x_bld, keep_bl, **ends, **options)


def theirs(model: Any, x_bld: np.ndarray, keep_bl: np.ndarray, **options: Any) -> Any:
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        return model.generate(
            inputs_embeds=torch.tensor(x_bld),
            attention_mask=torch.tensor(keep_bl.astype(np.int64)),
            max_new_tokens=TOKENS, do_sample=False, **options,
        )  # fmt: skip


def padded(ids: Any) -> np.ndarray:
    """Their texts end where the longest one does."""
    found = np.asarray(ids)
    return np.pad(found, ((0, 0), (0, TOKENS - found.shape[1])), constant_values=PAD)


SEEDS = range(6)
BEAMS = [(1, 1.0), (3, 1.0), (4, 0.0), (5, 1.0), (5, 2.0), (3, -1.0)]


@pytest.mark.parametrize("num_beams,penalty", BEAMS)
def test_tokens_equal_transformers(num_beams: int, penalty: float) -> None:
    """Embeddings in, padded on the left; some texts end and some are cut."""
    ended = cut = 0
    different = set()
    for seed in SEEDS:
        state = talkative(seed)
        model, decoder = torch_model(CONFIG, state), make(CONFIG)
        params, args = read_decoder(state, fields_of(CONFIG)), prompts(seed)
        beams = {} if num_beams == 1 else {"length_penalty": penalty, "early_stopping": False}
        want = padded(theirs(model, *args, num_beams=num_beams, **beams))
        got = ours(decoder, params, *args, num_beams=num_beams, length_penalty=penalty)
        np.testing.assert_array_equal(got, want, err_msg=f"seed {seed}")
        has_end_b = (want == EOS).any(axis=1)
        ended, cut = ended + has_end_b.sum(), cut + (~has_end_b).sum()
        different |= {tuple(row) for row in want}
    assert ended >= 1 and cut >= 3, (ended, cut)
    assert len(different) > len(SEEDS)


@pytest.mark.parametrize("early_stopping", [False, True])
@pytest.mark.parametrize("penalty", [1.0, 0.6])
def test_all_beams_and_scores_equal_transformers(early_stopping: bool, penalty: float) -> None:
    for seed in SEEDS:
        state = talkative(seed)
        model, decoder = torch_model(CONFIG, state), make(CONFIG)
        params, args = read_decoder(state, fields_of(CONFIG)), prompts(seed)
        out = theirs(
            model, *args, num_beams=4, num_return_sequences=4, length_penalty=penalty,
            early_stopping=early_stopping, return_dict_in_generate=True, output_scores=True,
        )  # fmt: skip
        got_bwl, score_bw = all_beams(decoder, params, *args, penalty, early_stopping)
        want = padded(out.sequences).reshape(4, 4, TOKENS)
        np.testing.assert_array_equal(got_bwl, want, err_msg=f"seed {seed}")
        scores = out.sequences_scores.numpy().reshape(4, 4)
        np.testing.assert_allclose(score_bw, scores, rtol=1e-5, atol=1e-5)


@functools.partial(jax.jit, static_argnums=(0, 4, 5))
def all_beams(
    decoder: Decoder, params: Any, x_bld: Any, keep_bl: Any, penalty: float, early: bool
) -> Any:
    """The search itself, put together from the decoder's own methods."""

    def prompt(module: Decoder) -> Any:
        x, cache = module(x_bld, keep_bl, module.new_cache(len(x_bld), x_bld.shape[1] + TOKENS))
        return module.logits(x[:, -1:])[:, 0], cache

    def step(token_b: jax.Array, cache: Any) -> Any:
        def column(module: Decoder) -> Any:
            x, grown = module(module.embed(token_b[:, None]), token_b[:, None] >= 0, cache)
            return module.logits(x)[:, 0], grown

        return decoder.apply({"params": params}, method=column)

    first_bv, cache = decoder.apply({"params": params}, method=prompt)
    return beam_search(
        step, first_bv, cache, Cache.take, num_tokens=TOKENS, num_beams=4,
        length_penalty=penalty, eos_id=EOS, pad_id=PAD, early_stopping=early,
    )  # fmt: skip


@pytest.mark.parametrize("num_beams", [1, 3])
def test_padding_on_either_side_gives_the_same_texts(num_beams: int) -> None:
    state = talkative(0)
    decoder, params = make(CONFIG), read_decoder(state, fields_of(CONFIG))
    x_bld, keep_bl = prompts(0)
    want = ours(decoder, params, x_bld, keep_bl, num_beams=num_beams)
    moved = np.stack([np.roll(x, -int((~k).sum()), 0) for x, k in zip(x_bld, keep_bl, strict=True)])
    right_bl = np.arange(7)[None] < keep_bl.sum(1, keepdims=True)
    got = ours(decoder, params, moved, right_bl, num_beams=num_beams)
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_likelihood_equals_the_log_softmax_of_transformers(side: str, penalty: float) -> None:
    """Every candidate runs alone on their side, without any padding."""
    torch = pytest.importorskip("torch")
    state = talkative(2)
    model, decoder = torch_model(CONFIG, state), make(CONFIG)
    params, (x_bld, keep_bl) = read_decoder(state, fields_of(CONFIG)), prompts(2, side)
    ids_bct = np.random.default_rng(1).integers(3, 29, (4, 3, 5)).astype(np.int32)
    length_bc = np.array([[5, 1, 3], [2, 2, 4], [1, 1, 0], [5, 4, 3]])
    keep_bct = np.arange(5)[None, None] < length_bc[..., None]

    @jax.jit
    def rank(params: Any, ids_bct: Any) -> jax.Array:
        return decoder.apply(
            {"params": params}, x_bld, keep_bl, ids_bct, keep_bct, penalty, method=log_likelihood
        )

    got_bc = rank(params, ids_bct)
    np.testing.assert_array_equal(rank(params, np.where(keep_bct, ids_bct, 7)), got_bc)
    word = model.get_input_embeddings()
    for b, c in np.ndindex(4, 3):
        ids = torch.tensor(ids_bct[b, c, : length_bc[b, c]]).long()
        if not len(ids):
            assert got_bc[b, c] == -np.inf
            continue
        prompt = torch.tensor(x_bld[b][keep_bl[b]])
        with torch.no_grad():
            inputs = torch.cat([prompt, word(ids)])[None]
            log = torch.log_softmax(model(inputs_embeds=inputs).logits[0], dim=-1)
        each = log[len(prompt) - 1 : -1].gather(1, ids[:, None])
        want = float(each.sum()) / len(ids) ** penalty
        np.testing.assert_allclose(got_bc[b, c], want, rtol=1e-5, atol=1e-5)


def test_likelihood_of_a_long_text_is_that_of_its_greedy_scores() -> None:
    """Sums add up: a text scored whole equals its first half plus the rest behind that half."""
    decoder, params = make(CONFIG), read_decoder(talkative(4), fields_of(CONFIG))
    x_bld, keep_bl = prompts(4)
    ids_bct = np.random.default_rng(2).integers(3, 29, (4, 1, 6)).astype(np.int32)

    def sum_of(x_bld: Any, keep_bl: Any, ids_bct: Any) -> jax.Array:
        every = jnp.ones(ids_bct.shape, bool)
        return decoder.apply(
            {"params": params}, x_bld, keep_bl, ids_bct, every, 0.0, method=log_likelihood
        )

    half_bld = decoder.apply({"params": params}, ids_bct[:, 0, :3], method=Decoder.embed)
    longer = (
        np.concatenate([x_bld, half_bld], axis=1),
        np.pad(keep_bl, ((0, 0), (0, 3)), constant_values=True),
    )
    parts = sum_of(x_bld, keep_bl, ids_bct[..., :3]) + sum_of(*longer, ids_bct[..., 3:])
    np.testing.assert_allclose(sum_of(x_bld, keep_bl, ids_bct), parts, rtol=1e-5, atol=1e-5)
