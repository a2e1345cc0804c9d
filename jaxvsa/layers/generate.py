"""Texts from a decoder, and how likely given texts are; no recompilation as a text grows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxvsa.core.errors import UserError
from jaxvsa.core.precision import island
from jaxvsa.core.shapes import bind_dims
from jaxvsa.layers.decoder import Cache, Decoder

Step = Callable[[jax.Array, Any], tuple[jax.Array, Any]]
"""(tokens (b,), cache) -> (scores of the next token (b,v), cache)."""
Pick = Callable[[Any, jax.Array], Any]
"""(cache, numbers of rows (b,)) -> a cache of those rows."""


def greedy(
    step: Step, first_bv: jax.Array, cache: Any, *, num_tokens: int, eos_id: int, pad_id: int
) -> jax.Array:
    """The likeliest token, again and again: int32 (b,`num_tokens`), `pad_id` behind `eos_id`.

    Stops as soon as every row has ended; `step` runs at most `num_tokens` - 1 times.

    Args:
        step: one more column.
        first_bv: scores of the first token.
        cache: what `step` is given first.
        num_tokens: at most so many, `eos_id` included.
        eos_id: ends a row.
        pad_id: stands behind the end.
    """

    def choose(at: jax.Array, ended_b: jax.Array, scores_bv: jax.Array, out_bl: jax.Array) -> Any:
        token_b = jnp.where(ended_b, pad_id, jnp.argmax(scores_bv, axis=-1).astype(jnp.int32))
        return at + 1, ended_b | (token_b == eos_id), token_b, out_bl.at[:, at].set(token_b)

    def more(carry: Any) -> jax.Array:
        (at, ended_b, *_), _ = carry
        return (at < num_tokens) & ~jnp.all(ended_b)

    def one(carry: Any) -> Any:
        (at, ended_b, token_b, out_bl), cache = carry
        scores_bv, cache = step(token_b, cache)
        return choose(at, ended_b, scores_bv, out_bl), cache

    out_bl = jnp.full((len(first_bv), num_tokens), pad_id, jnp.int32)
    nothing = jnp.zeros((), jnp.int32), jnp.zeros(len(first_bv), bool)
    (_, _, _, out_bl), _ = jax.lax.while_loop(
        more, one, (choose(*nothing, first_bv, out_bl), cache)
    )
    return out_bl


class _Beams(struct.PyTreeNode):
    """Search of w texts for each example; y numbers all of them, example by example.

    `open_*` can grow, `done_*` are the best that have ended, both best first; `ended_bw` is False
    where `done_*` has nothing yet. `alive_b`: an open text may still beat a done one.
    """

    at: jax.Array
    open_bwl: jax.Array
    open_score_bw: jax.Array
    done_bwl: jax.Array
    done_score_bw: jax.Array
    ended_bw: jax.Array
    alive_b: jax.Array
    token_y: jax.Array
    row_y: jax.Array


def beam_search(
    step: Step,
    first_bv: jax.Array,
    cache: Any,
    pick: Pick,
    *,
    num_tokens: int,
    num_beams: int,
    length_penalty: float,
    eos_id: int,
    pad_id: int,
    early_stopping: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """The best ended texts that a beam search finds, best first, and their scores.

    A score is the sum of log-probabilities over (number of tokens) ** `length_penalty`, `eos_id`
    counted in both. The prompt is in `cache` once for each example; it is copied here.

    Source: transformers, `generate(num_beams=w, do_sample=False)`, whose texts and scores these
    are. Kept: of the 2 w best continuations only the first w can end. An example is finished when
    w of its texts have ended and the best open one, were it to end at its present length, would
    score no better than the worst of them; under a penalty above 0 that text might have risen
    above it later. `early_stopping` finishes as soon as w texts have ended. One beam always does,
    and so is `greedy` under every penalty.

    Args:
        step: one more column, for all y = b w texts.
        first_bv: scores of the first token, (b,v).
        cache: what `step` is given first, of b rows.
        pick: takes rows of the cache.
        num_tokens: at most so many, `eos_id` included; a text that reaches it has ended.
        num_beams: w.
        length_penalty: 0 compares sums, 1 means; above 0 favours long texts.
        eos_id: ends a text.
        pad_id: stands behind the end.
        early_stopping: see above.

    Returns:
        int32 (b,w,`num_tokens`) and scores (b,w) in at least float32.

    Raises:
        UserError: no beam, or fewer than 2 w tokens to choose from.
    """
    dims = bind_dims(first_bv=first_bv)
    rows, num_words, wide = dims["b"], dims["v"], island(first_bv)
    if not 1 <= num_beams <= num_words // 2:
        raise UserError(f"num_beams is {num_beams}; allowed: 1 to {num_words // 2}")
    early, shape = early_stopping or num_beams == 1, (rows, num_beams)

    def advance(found: _Beams, scores_yv: jax.Array) -> _Beams:
        log_yv = jax.nn.log_softmax(scores_yv.astype(wide), axis=-1)
        log_bwv = log_yv.reshape(*shape, num_words) + found.open_score_bw[..., None]
        return _extend(found, log_bwv, num_tokens, length_penalty, eos_id, early)

    def more(carry: Any) -> jax.Array:
        found, _ = carry
        full = early & jnp.all(found.ended_bw)
        return (found.at < num_tokens) & jnp.any(found.alive_b) & ~full

    def one(carry: Any) -> Any:
        found, cache = carry
        scores_yv, cache = step(found.token_y, pick(cache, found.row_y))
        return advance(found, scores_yv), cache

    texts = jnp.full((*shape, num_tokens), pad_id, jnp.int32)
    nothing = jnp.full(shape, -jnp.inf, wide)
    row_y = jnp.repeat(jnp.arange(rows), num_beams)
    found = _Beams(
        at=jnp.zeros((), jnp.int32), open_bwl=texts, open_score_bw=nothing.at[:, 0].set(0),
        done_bwl=texts, done_score_bw=nothing, ended_bw=jnp.zeros(shape, bool),
        alive_b=jnp.ones(rows, bool), token_y=jnp.zeros_like(row_y), row_y=row_y,
    )  # fmt: skip
    start = advance(found, first_bv[row_y]), pick(cache, row_y)
    found, _ = jax.lax.while_loop(more, one, start)
    return found.done_bwl, found.done_score_bw


def _extend(
    found: _Beams, log_bwv: jax.Array, num_tokens: int, penalty: float, eos_id: int, early: bool
) -> _Beams:
    """One more token for every open text; `log_bwv` are sums of log-probabilities."""
    rows, num_beams, num_words = log_bwv.shape
    length = found.at + 1
    norm = length.astype(log_bwv.dtype) ** penalty
    sum_bc, flat_bc = jax.lax.top_k(log_bwv.reshape(rows, -1), 2 * num_beams)
    from_bc, token_bc = flat_bc // num_words, (flat_bc % num_words).astype(jnp.int32)
    text_bcl = _rows(found.open_bwl, from_bc).at[:, :, found.at].set(token_bc)
    ends_bc = (token_bc == eos_id) | (length == num_tokens)

    open_score_bw, open_bw = jax.lax.top_k(jnp.where(ends_bc, -jnp.inf, sum_bc), num_beams)
    best_bc = (jnp.arange(2 * num_beams) < num_beams)[None]
    full_b = early & jnp.all(found.ended_bw, axis=1)
    counts_bc = ends_bc & best_bc & (found.alive_b & ~full_b)[:, None]
    score_bc = jnp.where(counts_bc, sum_bc / norm, -jnp.inf)
    score_bn = jnp.concatenate([found.done_score_bw, score_bc], axis=1)
    done_score_bw, done_bw = jax.lax.top_k(score_bn, num_beams)
    ended_bn = jnp.concatenate([found.ended_bw, counts_bc], axis=1)
    ended_bw = jnp.take_along_axis(ended_bn, done_bw, axis=1)
    beaten_b = jnp.all(ended_bw, axis=1) & (open_score_bw[:, 0] / norm <= done_score_bw[:, -1])
    source_bw = jnp.take_along_axis(from_bc, open_bw, axis=1)
    return _Beams(
        at=length,
        open_bwl=_rows(text_bcl, open_bw),
        open_score_bw=open_score_bw,
        done_bwl=_rows(jnp.concatenate([found.done_bwl, text_bcl], axis=1), done_bw),
        done_score_bw=done_score_bw,
        ended_bw=ended_bw,
        alive_b=found.alive_b & ~beaten_b,
        token_y=jnp.take_along_axis(token_bc, open_bw, axis=1).reshape(-1),
        row_y=(source_bw + num_beams * jnp.arange(rows)[:, None]).reshape(-1),
    )


def _rows(text_bcl: jax.Array, number_bw: jax.Array) -> jax.Array:
    """Texts by number within each example, (b,c,l) -> (b,w,l)."""
    return jnp.take_along_axis(text_bcl, number_bw[..., None], axis=1)


def generate(
    decoder: Decoder,
    params: Any,
    x_bld: jax.Array,
    keep_bl: jax.Array,
    *,
    num_tokens: int,
    eos_id: int,
    pad_id: int,
    num_beams: int = 1,
    length_penalty: float = 1.0,
) -> jax.Array:
    """The best text after a prompt, int32 (b,`num_tokens`), `pad_id` behind `eos_id`.

    One beam is greedy search. The prompt runs once for each example, whatever the number of beams.

    Args:
        decoder: not bound; under `jax.jit` it is static.
        params: its parameters.
        x_bld: embeddings of the prompt, visual tokens and words, padded on any side.
        keep_bl: bool, real columns; each row has one at least.
        num_tokens: at most so many, `eos_id` included.
        eos_id: ends a text.
        pad_id: stands behind the end.
        num_beams: see `beam_search`.
        length_penalty: likewise.

    Raises:
        UserError: see `beam_search`.
        ValueError: sizes differ between arguments.
    """

    def prompt(module: Decoder) -> tuple[jax.Array, Cache]:
        return _prompt(module, x_bld, keep_bl, num_tokens - 1)

    def column(module: Decoder, token_b: jax.Array, cache: Cache) -> tuple[jax.Array, Any]:
        new_b1 = token_b[:, None]
        x_b1d, grown = module(module.embed(new_b1), jnp.ones(new_b1.shape, bool), cache)
        return module.logits(x_b1d)[:, 0], grown

    def step(token_b: jax.Array, cache: Cache) -> tuple[jax.Array, Any]:
        return decoder.apply({"params": params}, token_b, cache, method=column)

    first_bv, cache = decoder.apply({"params": params}, method=prompt)
    if num_beams == 1:
        return greedy(step, first_bv, cache, num_tokens=num_tokens, eos_id=eos_id, pad_id=pad_id)
    out_bwl, _ = beam_search(
        step, first_bv, cache, Cache.take, num_tokens=num_tokens, num_beams=num_beams,
        length_penalty=length_penalty, eos_id=eos_id, pad_id=pad_id,
    )  # fmt: skip
    return out_bwl[:, 0]


def log_likelihood(
    decoder: Decoder,
    x_bld: jax.Array,
    keep_bl: jax.Array,
    ids_bct: jax.Array,
    keep_bct: jax.Array,
    length_penalty: float = 1.0,
) -> jax.Array:
    """How likely candidate texts are after a prompt: (b,c), at least float32, at most 0.

    The sum of the log-probabilities of a candidate's real tokens over (their number) **
    `length_penalty`: the mean at 1, the sum at 0. A candidate without real tokens gets -inf, so
    that rows with fewer candidates can be filled up. The prompt runs once for all candidates, and
    logits are computed at their tokens only.

    Source: LAVIS, `predict_class` of InstructBLIP. Deviation: that divides by the padded length of
    prompt and candidate together, the same number for all, and so compares sums; see
    `length_penalty`.

    Args:
        decoder: bound, as in `decoder.apply(variables, ..., method=log_likelihood)`.
        x_bld: embeddings of the prompt, padded on any side.
        keep_bl: bool, real columns; each row has one at least.
        ids_bct: tokens of the candidates c, the end among them if it shall count.
        keep_bct: bool, real tokens, which come first.
        length_penalty: see above.

    Raises:
        ValueError: sizes differ between arguments.
    """
    bind_dims(x_bld=x_bld, keep_bl=keep_bl)
    dims = bind_dims(x_bld=x_bld, ids_bct=ids_bct, keep_bct=keep_bct)
    rows, choices, tokens = dims["b"], dims["c"], dims["t"]
    first_bv, cache = _prompt(decoder, x_bld, keep_bl, tokens - 1)
    ids_yt, keep_yt = (array.reshape(rows * choices, tokens) for array in (ids_bct, keep_bct))
    row_y = jnp.repeat(jnp.arange(rows), choices)
    logits_ytv = first_bv[row_y][:, None]
    if tokens > 1:
        x_yld, _ = decoder(decoder.embed(ids_yt[:, :-1]), keep_yt[:, :-1], cache.take(row_y))
        logits_ytv = jnp.concatenate([logits_ytv, decoder.logits(x_yld)], axis=1)
    log_ytv = jax.nn.log_softmax(logits_ytv, axis=-1)
    log_yt = jnp.take_along_axis(log_ytv, ids_yt[..., None], axis=-1)[..., 0]
    count_y = jnp.sum(keep_yt, axis=1)
    norm_y = jnp.maximum(count_y, 1).astype(log_yt.dtype) ** length_penalty
    mean_y = jnp.sum(jnp.where(keep_yt, log_yt, 0), axis=1) / norm_y
    return jnp.where(count_y > 0, mean_y, -jnp.inf).reshape(rows, choices)


def _prompt(
    decoder: Decoder, x_bld: jax.Array, keep_bl: jax.Array, more: int
) -> tuple[jax.Array, Cache]:
    """Scores (b,v) behind each row's last real column, and a cache with room for `more`."""
    dims = bind_dims(x_bld=x_bld, keep_bl=keep_bl)
    cache = decoder.new_cache(dims["b"], dims["l"] + more)
    x_bld, filled = decoder(x_bld, keep_bl, cache)
    assert filled is not None  # a cache went in
    last_b = jnp.max(jnp.where(keep_bl, jnp.arange(dims["l"])[None], 0), axis=1)
    last_b1d = jnp.take_along_axis(x_bld, last_b[:, None, None], axis=1)
    return decoder.logits(last_b1d)[:, 0], filled
