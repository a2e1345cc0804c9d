"""Dynamic attention routing: each example weighs how far its attention may look.

Source: MTransLLAMA, Eq. 11 and 12, and what it cites, TRAR (Zhou et al., 2021).
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxvsa.core.errors import UserError
from jaxvsa.core.precision import island
from jaxvsa.layers.attention import masked_softmax
from jaxvsa.layers.dropout import threefry_2x32, value_number


@dataclasses.dataclass(frozen=True)
class RoutingOptions:
    """How attention is routed.

    Attributes:
        enabled: False: plain attention.
        combine: "hadamard", Eq. 11 as printed: scores times the weighted masks, before the softmax;
            a score times zero is not masked. "mixture": what the cited code computes, the weighted
            mean of one softmax per mask. "log": softmax of score + log of the weighted masks, one
            softmax that does mask.
        orders: reach n of the band |i - i'| <= n of each mask; the first must be 0, which stands
            for no mask at all.
        schedule: "grow": layer i of N has min(P, 1 + floor(i P / N)) of the P masks; "all".
        cross_modal: "full": queries and words always see each other; "none": never under a band.
        temporal: attention over frames is routed, too.
        pool: the router reads the mean of "query" tokens, or of "all" real ones.
        hidden: width of the router; 0: no router, every mask keeps the weight that it begins with.
        norm: "softmax" over the masks, or "none".
        routing: "soft" weights; "hard": in training weights drawn around one mask (Gumbel-softmax
            at `tau`), otherwise the likeliest mask alone.
        tau: temperature of the relaxation, at first.
        tau_last: after `tau_updates` updates, to which it falls linearly. TRAR's are 10 and 0.1,
            lowered once an epoch.
        tau_updates: see there; 0: `tau` stays.
        first_bias: initial bias of the first mask, so that a new model hardly differs from the one
            without routing.
    """

    enabled: bool
    combine: Literal["hadamard", "mixture", "log"]
    orders: tuple[int, ...]
    schedule: Literal["grow", "all"]
    cross_modal: Literal["full", "none"]
    temporal: bool
    pool: Literal["query", "all"]
    hidden: int
    norm: Literal["softmax", "none"]
    routing: Literal["soft", "hard"]
    tau: float
    tau_last: float
    tau_updates: int
    first_bias: float

    def __post_init__(self) -> None:
        """Refuses what cannot work."""
        if not self.orders or self.orders[0] != 0 or min(self.orders) < 0:
            raise UserError(f"routing.orders is {self.orders}; the first must be 0, none below it")
        if self.routing == "hard" and self.combine == "hadamard":
            raise UserError(
                "routing.routing='hard' with routing.combine='hadamard': a score times zero still "
                "takes part in the softmax, so one mask alone masks nothing; use mixture or log"
            )
        if min(self.tau, self.tau_last) <= 0:
            raise UserError("routing.tau and routing.tau_last must be above 0")
        if min(self.hidden, self.tau_updates) < 0:
            raise UserError("routing.hidden and routing.tau_updates must be at least 0")

    def temperature(self, update: jax.Array | None) -> jax.Array | float:
        """Of the relaxation at the update t = 0, 1, ...; `tau` where that is not known."""
        if update is None or not self.tau_updates:
            return self.tau
        share = jnp.minimum(update / self.tau_updates, 1)
        return self.tau + share * (self.tau_last - self.tau)

    def num_masks(self, layer: int, num_layers: int) -> int:
        """Masks that a layer chooses from; with one there is no router and nothing changes."""
        if not self.enabled:
            return 1
        count = len(self.orders)
        return count if self.schedule == "all" else min(count, 1 + layer * count // num_layers)


def band_masks(length: int, orders: tuple[int, ...]) -> jax.Array:
    """Bool (m,q,q): all ones for order 0, else |i - i'| <= order."""
    place_q = jnp.arange(length)
    far_qq = jnp.abs(place_q[:, None] - place_q[None])
    return jnp.stack([far_qq <= order if order else far_qq >= 0 for order in orders])


def joint_masks(
    num_queries: int, num_words: int, orders: tuple[int, ...], cross_modal: str
) -> jax.Array:
    """Bool (m,z,z) over queries, then words: bands inside of each of the two."""
    side = band_masks(num_queries, orders), band_masks(num_words, orders)
    full_m = jnp.array([order == 0 or cross_modal == "full" for order in orders])
    across_mql = jnp.broadcast_to(full_m[:, None, None], (len(orders), num_queries, num_words))
    top = jnp.concatenate([side[0], across_mql], axis=2)
    bottom = jnp.concatenate([jnp.swapaxes(across_mql, 1, 2), side[1]], axis=2)
    return jnp.concatenate([top, bottom], axis=1)


class Router(nn.Module):
    """Weights of the masks from a pooled vector.

    Source: MTransLLAMA, Eq. 12. Chosen: as in TRAR, linear without bias, ReLU, linear with bias;
    the last kernel starts at zero.

    Attributes:
        num_masks: m.
        options: see `RoutingOptions`.
    """

    num_masks: int
    options: RoutingOptions

    @nn.compact
    def __call__(
        self,
        pooled_bd: jax.Array,
        example_b: jax.Array,
        place_b: jax.Array,
        deterministic: bool,
        update: jax.Array | None = None,
    ) -> jax.Array:
        """(b,d) -> weights (b,m), at least float32; they sum to one unless `norm` is "none".

        Args:
            pooled_bd: mean of the tokens.
            example_b: number of the example; keys the draws of hard routing, with the place.
            place_b: number of the row within its example.
            deterministic: nothing is drawn; otherwise from the rng collection "dropout".
            update: number of the update; see `RoutingOptions.temperature`.
        """
        options, wide = self.options, island(pooled_bd)
        zeros = nn.initializers.zeros

        def first(rng: Any, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
            return zeros(rng, shape, dtype).at[..., 0].set(options.first_bias)

        example_b = jnp.asarray(example_b, jnp.uint32)
        if options.hidden:
            inner = nn.Dense(options.hidden, use_bias=False, dtype=wide, name="inner")
            logits_bm = nn.Dense(
                self.num_masks, kernel_init=zeros, bias_init=first, dtype=wide, name="outer"
            )(nn.relu(inner(pooled_bd)))
        else:
            logits_bm = first(None, (len(pooled_bd), self.num_masks), wide)
        if options.routing == "hard":
            if deterministic:
                return jax.nn.one_hot(jnp.argmax(logits_bm, axis=-1), self.num_masks, dtype=wide)
            words = jax.random.bits(self.make_rng("dropout"), (2,), jnp.uint32)
            number_bm = value_number(place_b, self.num_masks)
            bits_bm, _ = threefry_2x32((words[0], words[1]), example_b[:, None], number_bm)
            gumbel_bm = -jnp.log(-jnp.log(open_uniform(bits_bm, wide)))
            noisy_bm = jax.nn.log_softmax(logits_bm, axis=-1) + gumbel_bm
            return jax.nn.softmax(noisy_bm / options.temperature(update), axis=-1)
        return jax.nn.softmax(logits_bm, axis=-1) if options.norm == "softmax" else logits_bm


def open_uniform(bits: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Uniform numbers from uint32, never 0 and never 1, which would make a Gumbel infinite.

    23 of the bits: their number plus a half is exact in float32.
    """
    return ((bits >> 9).astype(dtype) + 0.5) / 2.0**23


def routed_softmax(
    logits_bhqz: jax.Array, keep_bz: jax.Array, weight_bm: jax.Array, sees_mqz: jax.Array,
    combine: str,
) -> jax.Array:  # fmt: skip
    """Attention weights (b,h,q,z) under weighted masks; keys with keep = False get none.

    Source: MTransLLAMA, Eq. 11 ("hadamard"); see `RoutingOptions.combine` for the others.
    Chosen: under "hadamard" padding is masked after the product, which would unmask it.
    """
    keep_bhqz = keep_bz[:, None, None]
    weight_bm = weight_bm.astype(logits_bhqz.dtype)
    if combine == "mixture":
        each_bmhqz = masked_softmax(
            logits_bhqz[:, None], keep_bhqz[:, None] & sees_mqz[None, :, None]
        )
        return jnp.einsum("bm,bmhqz->bhqz", weight_bm, each_bmhqz)
    mixed_bqz = jnp.einsum("bm,mqz->bqz", weight_bm, sees_mqz.astype(weight_bm.dtype))
    if combine == "hadamard":
        return masked_softmax(logits_bhqz * mixed_bqz[:, None], keep_bhqz)
    open_bhqz = (mixed_bqz > 0)[:, None]
    log_bqz = jnp.log(jnp.where(mixed_bqz > 0, mixed_bqz, 1))
    return masked_softmax(logits_bhqz + log_bqz[:, None], keep_bhqz & open_bhqz)
