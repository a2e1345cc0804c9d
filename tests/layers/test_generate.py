"""Texts from tables that say what follows what; parity is in interop/test_llama_generate.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvsa.core.errors import UserError
from jaxvsa.layers.generate import beam_search, greedy

PAD, EOS = 0, 5
START, A, B = 1, 2, 3


def test_greedy_follows_a_table_and_stops() -> None:
    """Token n is followed by n + 1; 5 ends. The first token needs no step."""
    calls = []

    def step(token_b: jax.Array, cache: jax.Array) -> tuple[jax.Array, jax.Array]:
        jax.debug.callback(lambda: calls.append(1))
        return jax.nn.one_hot(token_b + 1, 9), cache + 1

    first_bv = jax.nn.one_hot(jnp.array([3, 1]), 9)
    got = jax.jit(
        lambda first: greedy(step, first, jnp.zeros(()), num_tokens=8, eos_id=EOS, pad_id=PAD)
    )(first_bv)
    np.testing.assert_array_equal(got, [[3, 4, 5, 0, 0, 0, 0, 0], [1, 2, 3, 4, 5, 0, 0, 0]])
    jax.effects_barrier()
    assert len(calls) == 4


def table(odds: dict[int, dict[int, float]]) -> np.ndarray:
    """Log-probabilities (v,v) of the next token; what is not named shares what is left."""
    log_vv = np.zeros((8, 8))
    for token in range(8):
        named = odds.get(token, {})
        rest = (1 - sum(named.values())) / (8 - len(named))
        log_vv[token] = np.log([named.get(i, rest) for i in range(8)])
    return log_vv


# Taking A first looks best; B is followed by the end for sure.
TRAP = table({START: {A: 0.5, B: 0.4}, A: {EOS: 0.3, A: 0.2}, B: {EOS: 0.93}})


def search(log_vv: np.ndarray, num_tokens: int = 6, rows: int = 1, **options: Any) -> Any:
    def step(token_y: jax.Array, cache_y: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jnp.asarray(log_vv)[token_y], cache_y

    def run(first_bv: jax.Array) -> Any:
        return beam_search(
            step, first_bv, jnp.arange(rows), lambda c, i: c[i], num_tokens=num_tokens,
            eos_id=EOS, pad_id=PAD, **options,
        )  # fmt: skip

    first_bv = jnp.tile(jnp.asarray(log_vv[START])[None], (rows, 1))
    return jax.device_get(jax.jit(run)(first_bv))


def test_two_beams_get_out_of_the_trap_by_hand() -> None:
    text_bwl, score_bw = search(TRAP, num_beams=2, length_penalty=0.0)
    np.testing.assert_array_equal(text_bwl[0, 0], [B, EOS, PAD, PAD, PAD, PAD])
    np.testing.assert_allclose(np.exp(score_bw[0, 0]), 0.4 * 0.93, rtol=1e-5)
    np.testing.assert_array_equal(text_bwl[0, 1, :2], [A, EOS])
    np.testing.assert_allclose(np.exp(score_bw[0, 1]), 0.5 * 0.3, rtol=1e-5)
    one, _ = search(TRAP, num_beams=1, length_penalty=0.0)
    assert one[0, 0, 0] == A


def test_the_penalty_divides_the_sum() -> None:
    """One text, both ways of ending: the end token counts, and so does a text that is cut."""
    sure = table({START: {A: 0.9}, A: {EOS: 0.9}})
    for penalty in (0.0, 1.0, 2.0):
        text_bwl, score_bw = search(sure, num_beams=2, length_penalty=penalty)
        np.testing.assert_array_equal(text_bwl[0, 0], [A, EOS, PAD, PAD, PAD, PAD])
        np.testing.assert_allclose(score_bw[0, 0], 2 * np.log(0.9) / 2**penalty, rtol=1e-5)
    cut = table({START: {A: 0.9}, A: {A: 0.9}})
    text_bwl, score_bw = search(cut, num_tokens=4, num_beams=3, length_penalty=1.0)
    np.testing.assert_array_equal(text_bwl[0, 0], [A] * 4)
    np.testing.assert_allclose(score_bw[0, 0], np.log(0.9), rtol=1e-5)


@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0])
def test_one_beam_is_greedy(penalty: float) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        log_vv = np.log(rng.dirichlet(np.ones(8), 8))

        def step(
            token_b: jax.Array, cache: Any, log_vv: np.ndarray = log_vv
        ) -> tuple[jax.Array, Any]:
            return jnp.asarray(log_vv)[token_b], cache

        want = greedy(
            step, jnp.asarray(log_vv)[START][None], (), num_tokens=6, eos_id=EOS, pad_id=PAD
        )
        text_bwl, _ = search(log_vv, num_beams=1, length_penalty=penalty)
        np.testing.assert_array_equal(text_bwl[:, 0], want)


def test_every_text_keeps_its_own_cache() -> None:
    """The cache counts how often B was taken; what follows depends on it."""
    with_b, apart = 0, 0
    for seed in range(5):
        log_vv = np.log(np.random.default_rng(seed).dirichlet(np.ones(8), 8))
        log_vv[:, EOS] -= 2

        def step(
            token_y: jax.Array, cache_y: jax.Array, log_vv: np.ndarray = log_vv
        ) -> tuple[jax.Array, jax.Array]:
            cache_y = cache_y + (token_y == B)
            turned_yv = jnp.asarray(log_vv)[:, ::-1][token_y]
            odd = (cache_y % 2 == 1)[:, None]
            return jnp.where(odd, turned_yv, jnp.asarray(log_vv)[token_y]), cache_y

        first_bv = jnp.tile(jnp.asarray(log_vv[START])[None], (2, 1))
        text_bwl, score_bw = beam_search(
            step, first_bv, jnp.arange(2), lambda c, i: c[i], num_tokens=6, num_beams=3,
            length_penalty=0.0, eos_id=EOS, pad_id=PAD,
        )  # fmt: skip
        for b, w in np.ndindex(2, 3):
            text = np.asarray(text_bwl[b, w]).tolist()
            text = text[: text.index(EOS) + 1] if EOS in text else text
            want = sum_of(log_vv, text, b)
            np.testing.assert_allclose(score_bw[b, w], want, rtol=1e-5, err_msg=f"{seed} {text}")
            with_b += B in text[:-1]
        apart += bool((text_bwl[0] != text_bwl[1]).any())
    assert with_b >= 5 and apart >= 3


def sum_of(log_vv: np.ndarray, text: list[int], count: int) -> float:
    """Sum of log-probabilities of a text, one token at a time; `count` of B before it."""
    total, last = 0.0, START
    for at, token in enumerate(text):
        count += last == B
        row_v = log_vv[last, ::-1] if at and count % 2 else log_vv[last]
        total += row_v[token] - np.log(np.exp(row_v).sum())
        last = token
    return total


def test_other_examples_change_nothing() -> None:
    rng = np.random.default_rng(3)
    log_vv = np.log(rng.dirichlet(np.ones(8), 8))
    alone, many = (search(log_vv, rows=n, num_beams=3, length_penalty=1.0) for n in (1, 3))
    for row in range(3):
        np.testing.assert_array_equal(many[0][row], alone[0][0])
        np.testing.assert_allclose(many[1][row], alone[1][0], rtol=1e-6)


@pytest.mark.parametrize("num_beams", [0, 5])
def test_beams_without_enough_tokens_are_refused(num_beams: int) -> None:
    run: Callable[[], Any] = lambda: search(TRAP, num_beams=num_beams, length_penalty=1.0)  # noqa: E731
    with pytest.raises(UserError, match=rf"num_beams is {num_beams}; allowed: 1 to 4"):
        run()
