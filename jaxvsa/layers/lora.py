"""Low-rank changes of a frozen kernel; several sets over one kernel."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxvsa.core.errors import UserError
from jaxvsa.core.precision import Precision
from jaxvsa.layers.transformer import INIT


@dataclasses.dataclass(frozen=True)
class LoraOptions:
    """Size of the low-rank changes.

    Attributes:
        rank: r; 0 for none at all.
        alpha: the change is scaled by alpha / r.
        sites: the sets that exist: "space" and "time" for the two uses of self-attention, "cross".
    """

    rank: int
    alpha: float
    sites: tuple[str, ...]

    def __post_init__(self) -> None:
        """Refuses what cannot work."""
        if self.rank < 0:
            raise UserError(f"lora.rank is {self.rank}; 0 (none) is the least")
        unknown = sorted(set(self.sites) - {"space", "time", "cross"})
        if unknown:
            raise UserError(f"lora.sites: unknown '{unknown[0]}'; known: space, time, cross")


class LoraDense(nn.Module):
    """A linear layer with one frozen kernel and a low-rank change for each of its uses.

    Source: MTransLLAMA, Eq. 10: y = x W + b + (alpha / r) x A B, with A and B of the use at hand;
    LoRA (Hu et al., 2022), section 4.1; layout and initial values as in PEFT (A Kaiming uniform, B
    zero), so that a new layer is the frozen one.

    Parameters: kernel (d,u), bias (u,), lora_<use>/down (d,r), lora_<use>/up (r,u).

    Attributes:
        features: width u of the output.
        uses: names of the uses.
        options: see `LoraOptions`; uses that are not among its sites have no change.
        precision: parameter and compute types of the kernel; the changes are stored in float32.
    """

    features: int
    uses: tuple[str, ...]
    options: LoraOptions
    precision: Precision

    @nn.compact
    def __call__(self, x_bzd: jax.Array, use: str) -> jax.Array:
        """(b,z,d) -> (b,z,u) as `use` has it."""
        width, rank = x_bzd.shape[-1], self.options.rank
        store, compute = self.precision.param_dtype, self.precision.compute_dtype
        kernel_du = self.param("kernel", INIT, (width, self.features), store).astype(compute)
        bias_u = self.param("bias", nn.initializers.zeros, (self.features,), store)
        y_bzu = x_bzd @ kernel_du + bias_u.astype(compute)[None, None]
        changes = {
            name: LowRank(self.features, rank, name=f"lora_{name}")
            for name in self.uses
            if rank and name in self.options.sites
        }
        if self.is_initializing():  # whatever the first use is, all of them have parameters
            for change in changes.values():
                change(x_bzd)
        if use not in self.uses:
            raise ValueError(f"unknown use '{use}'; known: {self.uses}")
        if use not in changes:
            return y_bzu
        return y_bzu + changes[use](x_bzd) * (self.options.alpha / rank)


class LowRank(nn.Module):
    """x A B, with A (d,r) and B (r,u) in float32, computed in the type of x."""

    features: int
    rank: int

    @nn.compact
    def __call__(self, x_bzd: jax.Array) -> jax.Array:
        """(b,z,d) -> (b,z,u)."""
        # Kaiming uniform with a = sqrt(5), as torch.nn.Linear: bound 1 / sqrt(d).
        init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        down_dr = self.param("down", init, (x_bzd.shape[-1], self.rank), jnp.float32)
        up_ru = self.param("up", nn.initializers.zeros, (self.rank, self.features), jnp.float32)
        return (x_bzd @ down_dr.astype(x_bzd.dtype)) @ up_ru.astype(x_bzd.dtype)


def merge(dense: dict, use: str, options: LoraOptions) -> dict:
    """Kernel and bias of a plain linear layer that computes what `LoraDense` does for `use`."""
    kernel_du = jnp.asarray(dense["kernel"])
    change = dense.get(f"lora_{use}")
    if change is not None:
        scaled_du = (options.alpha / options.rank) * (
            jnp.asarray(change["down"]) @ jnp.asarray(change["up"])
        )
        kernel_du = (kernel_du + scaled_du).astype(kernel_du.dtype)
    return {"kernel": kernel_du, "bias": dense["bias"]}
