"""EVA-CLIP vision transformer: pixels in, one vector per patch and one for the whole out.

Source: EVA-CLIP (Sun et al., 2023) as computed by Hugging Face transformers for BLIP-2 and
InstructBLIP; MTransLLAMA, section III-A: the frozen visual encoder.
"""

from __future__ import annotations

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxvsa.core.errors import UserError
from jaxvsa.core.precision import Precision, island
from jaxvsa.core.shapes import bind_dims
from jaxvsa.layers.attention import masked_softmax
from jaxvsa.layers.transformer import INIT, dense, gelu, layer_norm


@dataclasses.dataclass(frozen=True)
class VisionOptions:
    """Sizes of a vision transformer.

    Attributes:
        image_size: pixels of each side.
        patch_size: pixels of each side of a patch; divides the image.
        width: f.
        num_layers: blocks.
        num_heads: heads; divides the width.
        mlp_width: inner width of a block's network.
        norm_eps: epsilon of the LayerNorms.
    """

    image_size: int
    patch_size: int
    width: int
    num_layers: int
    num_heads: int
    mlp_width: int
    norm_eps: float

    def __post_init__(self) -> None:
        """Refuses sizes that do not divide each other."""
        if self.image_size % self.patch_size:
            raise UserError(
                f"vision: patch_size {self.patch_size} does not divide image_size {self.image_size}"
            )
        if self.width % self.num_heads:
            raise UserError(f"vision: {self.num_heads} heads do not divide width {self.width}")

    @property
    def num_tokens(self) -> int:
        """Patches, and one token for the whole."""
        return (self.image_size // self.patch_size) ** 2 + 1


class VisionBlock(nn.Module):
    """One pre-norm block: self-attention over one product for q, k and v, then a GELU network."""

    options: VisionOptions
    precision: Precision

    @nn.compact
    def __call__(self, x_npf: jax.Array) -> jax.Array:
        """(n,p,f) -> (n,p,f)."""
        options, rows = self.options, x_npf.shape[:2]
        head = options.width // options.num_heads
        linear = functools.partial(dense, precision=self.precision)
        norm = functools.partial(layer_norm, epsilon=options.norm_eps, precision=self.precision)

        all_npc = linear(3 * options.width, "qkv")(norm("norm_attention")(x_npf))
        q_nphe, k_nzhe, v_nzhe = (
            part.reshape(*rows, options.num_heads, head) for part in jnp.split(all_npc, 3, axis=-1)
        )
        logits_nhpz = jnp.einsum(
            "nphe,nzhe->nhpz", q_nphe, k_nzhe, preferred_element_type=island(q_nphe)
        )
        every = jnp.ones((1, 1, 1, 1), bool)
        attn_nhpz = masked_softmax(logits_nhpz * head**-0.5, every).astype(v_nzhe.dtype)
        out_nphe = jnp.einsum("nhpz,nzhe->nphe", attn_nhpz, v_nzhe)
        x_npf += linear(options.width, "out")(out_nphe.reshape(x_npf.shape))
        inner_npi = gelu(linear(options.mlp_width, "mlp_in")(norm("norm_mlp")(x_npf)))
        return x_npf + linear(options.width, "mlp_out")(inner_npi)


class VisionTransformer(nn.Module):
    """Patches, a token for the whole, learned positions, blocks under one scan, a last LayerNorm.

    Parameters: patch (c,f) with c the values of a patch in the order row, column, colour,
    patch_bias, whole (f,), position (p,f), blocks/... with a leading layer axis, norm.

    Attributes:
        options: see `VisionOptions`.
        precision: parameter and compute types.
    """

    options: VisionOptions
    precision: Precision

    @nn.compact
    def __call__(self, image_nyxk: jax.Array) -> jax.Array:
        """Images (n, rows, columns, 3), normalised, to (n,p,f); token 0 is the whole.

        Raises:
            ValueError: images of another size.
        """
        options = self.options
        dims = bind_dims(image_nyxk=image_nyxk)
        size, patch = options.image_size, options.patch_size
        if image_nyxk.shape[1:] != (size, size, 3):
            raise ValueError(f"images are {image_nyxk.shape[1:]}, expected {(size, size, 3)}")
        store, compute = self.precision.param_dtype, self.precision.compute_dtype
        side = size // patch
        cut = image_nyxk.astype(compute).reshape(dims["n"], side, patch, side, patch, 3)
        patch_npc = jnp.swapaxes(cut, 2, 3).reshape(dims["n"], side * side, patch * patch * 3)
        zeros = nn.initializers.zeros
        kernel_cf = self.param("patch", INIT, (patch_npc.shape[-1], options.width), store)
        bias_f = self.param("patch_bias", zeros, (options.width,), store)
        whole_f = self.param("whole", INIT, (options.width,), store)
        place_pf = self.param("position", INIT, (options.num_tokens, options.width), store)
        x_npf = patch_npc @ kernel_cf.astype(compute) + bias_f.astype(compute)[None, None]
        whole_n1f = jnp.broadcast_to(whole_f.astype(compute), (dims["n"], 1, options.width))
        x_npf = jnp.concatenate([whole_n1f, x_npf], axis=1) + place_pf.astype(compute)[None]

        def block(module: VisionBlock, x_npf: jax.Array, _: None) -> tuple[jax.Array, None]:
            return module(x_npf), None

        scan = nn.scan(
            block, variable_axes={"params": 0}, split_rngs={"params": True},
            length=options.num_layers,
        )  # fmt: skip
        x_npf, _ = scan(VisionBlock(options, self.precision, name="blocks"), x_npf, None)
        return layer_norm("norm", options.norm_eps, self.precision)(x_npf)
