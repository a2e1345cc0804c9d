"""What is the same for several rows is computed once, and what nothing reads is not computed."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from interop.qformer_oracle import inputs, make, ours, random_like

from jaxvsa.core.flops import count_flops
from jaxvsa.core.precision import Precision
from jaxvsa.layers.bert_blocks import AttentionBlock
from jaxvsa.layers.lora import LoraOptions
from jaxvsa.layers.tokens import Layout, Tokens, Words


def test_shared_words_are_as_good_as_repeated_ones() -> None:
    block = AttentionBlock(
        2, ("space",), LoraOptions(2, 2.0, ("space",)), "hadamard", 1e-12, Precision()
    )
    rng = np.random.default_rng(0)
    own_nqd, word_gwd = (
        jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((6, 3, 8), (2, 5, 8))
    )
    words = Words.rectangle(jnp.zeros((2, 5), int), jnp.arange(5)[None] < jnp.array([[5], [3]]))
    layout = Layout.of(words, 3)
    keep_nz = jnp.arange(8)[None] < jnp.array([8, 8, 8, 6, 6, 6])[:, None]
    shapes = jax.eval_shape(
        lambda: block.init(
            jax.random.key(0), Tokens(own_nqd), Tokens(own_nqd), keep_nz[:, :3], "space"
        )
    )
    params = random_like(shapes, 0.3)
    whole = Tokens(jnp.concatenate([own_nqd, jnp.repeat(word_gwd, 3, axis=0)], axis=1))
    want_nzd = block.apply(params, whole, whole, keep_nz, "space").row_bqd
    tokens = Tokens(own_nqd, word_gwd, layout)
    got_nzd = block.apply(params, tokens, tokens, keep_nz, "space").joined()
    np.testing.assert_allclose(got_nzd[keep_nz], want_nzd[keep_nz], rtol=1e-5, atol=1e-5)
    assert not got_nzd[~keep_nz].any()


def test_operations_of_the_q_former_by_hand() -> None:
    """The first layer projects words once for all frames; the last one computes none of them."""
    qformer = make(lora=LoraOptions(0, 1.0, ()), num_layers=3, cross_every=3)
    b, t, q, l, p, d, f, inner = 2, 4, 5, 6, 7, 32, 24, 40
    args = ours(*inputs(t))
    params = jax.eval_shape(lambda: qformer.init(jax.random.key(0), *args, True))["params"]
    n, z = b * t, q + l

    def attend(asks: int, rows: int, kinds: int, pairs: int) -> int:
        """Of rows: out for all that asks, and so many other projections for some."""
        return asks * d * d + rows * kinds * d * d + 2 * pairs * d

    time = attend(n * q, n * q, 3, b * q * t * t)
    network = 2 * d * inner
    first = attend(n * z, n * q + b * l, 3, n * z * z) + time + n * z * network
    first += 2 * n * q * d * d + 2 * n * p * f * d + 2 * n * q * p * d  # patches
    middle = attend(n * z, n * z, 3, n * z * z) + time + n * z * network
    last = attend(n * q, n * q, 1, n * q * z) + 2 * n * z * d * d + time + n * q * network
    run = functools.partial(qformer.apply, deterministic=True)
    found = count_flops(lambda params: run({"params": params}, *args), params)
    assert found == 2 * (first + middle + last)
