"""Dropout whose draws belong to the values, not to the layout of the arrays that hold them.

A draw depends on the key, on the number of the example, on the place of the value within it, and
on nothing else. So neither packing, padding, micro-batches nor the number of devices change what
is dropped.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


def threefry_2x32(
    key: tuple[jax.Array, jax.Array], high: jax.Array, low: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Two uniform words for every counter, 20 rounds, uint32 throughout.

    Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011). The same values as
    `jax.extend.random.threefry_2x32`, which cannot be fused with what uses them.
    """
    keys = (*key, key[0] ^ key[1] ^ jnp.uint32(0x1BD11BDA))
    high, low = jnp.broadcast_arrays(high, low)
    high, low = high + keys[0], low + keys[1]
    for block in range(5):
        for distance in _ROTATIONS[block % 2]:
            high = high + low
            low = (low << jnp.uint32(distance)) | (low >> jnp.uint32(32 - distance))
            low = high ^ low
        high = high + keys[(block + 1) % 3]
        low = low + keys[(block + 2) % 3] + jnp.uint32(block + 1)
    return high, low


def value_number(place_n: jax.Array, width: int) -> jax.Array:
    """Number of every value of packed vectors within its example: uint32 (n,width)."""
    first_n1 = place_n[:, None].astype(jnp.uint32) * width
    return first_n1 + jnp.arange(width, dtype=jnp.uint32)[None]


class Dropout(nn.Module):
    """Zeroes values at a rate and scales up the others, keyed by what they belong to.

    Randomness: rng collection "dropout", another key for every instance.

    Attributes:
        rate: share of values that become zero, at least 0 and below 1.
    """

    rate: float

    @nn.compact
    def __call__(
        self, x: jax.Array, example: jax.Array, value: jax.Array, deterministic: bool
    ) -> jax.Array:
        """Same shape and dtype as `x`.

        Args:
            x: any shape.
            example: integer number of the example, of the rank of `x`, each dimension full or 1.
            value: likewise, a number below 2**32 that no other value of this example has here.
            deterministic: nothing is dropped.
        """
        if deterministic or self.rate == 0:
            return x
        words = jax.random.bits(self.make_rng("dropout"), (2,), jnp.uint32)
        counters = (jnp.asarray(number, jnp.uint32) for number in (example, value))
        bits, _ = threefry_2x32((words[0], words[1]), *counters)
        keep = bits >= jnp.uint32(round(self.rate * 2**32))
        return jnp.where(keep, x / (1 - self.rate), jnp.zeros((), x.dtype))
