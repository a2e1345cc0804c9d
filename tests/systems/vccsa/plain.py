"""VC-CSA as published, in plain jax.numpy, over a dict of the published parameter names.

The oracle of this folder: every frame, every padded position, every scale one after another, every
row of every attention, every projection. Nothing is folded, shortened or batched, and there is no
dropout, so that each line can be read beside the paper. `forward` returns all intermediates.

Letters beside the usual ones: i input and o output width of a matrix, a width of the scale
attention, j the four LSTM gates side by side, x and y two sequences that attend (y is attended to).

Source: VC-CSA, section 4 and supplement; layouts and names of the published state dict.
Kept: padded frames take part in the convolutions, in the grounding attention and in the LSTM, and
padded words in the max-pool, as in the published code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

State = Mapping[str, Any]
TEXT = "text_encoder.text_encoder."
PAD_ID = 1


def forward(
    state: State, model: Mapping[str, Any], roberta: Mapping[str, Any], batch: State
) -> dict[str, Array]:
    """All intermediates of one batch, under the names of the golden cases.

    Args:
        state: parameters by published name.
        model: published model settings (`multiview_num`, `consensus_Transformer_head`, ...).
        roberta: settings of the text encoder, Hugging Face names.
        batch: video_feat (b,t,f), video_feat_mask (b,t), input_ids (b,l), attention_mask (b,l);
            masks hold 1 for real positions. Padded frames must be zero.
    """
    keep_bt, keep_bl = batch["video_feat_mask"] != 0, batch["attention_mask"] != 0
    name = "visual_encoder.linear.conv1d"
    video_btd = affine(batch["video_feat"], state[name + ".weight"][:, :, 0], state[name + ".bias"])
    text_blu = encode_text(state, roberta, batch["input_ids"], keep_bl)

    levels = []
    current_btd = video_btd
    for scale in range(model["multiview_num"]):
        current_btd = convolve(state, f"stack_cnn.{scale}.conv", current_btd)
        levels.append(one_scale(state, model, scale, current_btd, text_blu, keep_bt, keep_bl))
    out = {name: jnp.stack([level[name] for level in levels], 1) for name in levels[0]}
    out |= {"visual_encoded": video_btd, "text_token_features": text_blu}
    out |= fuse(state, out["grounding_features"], text_blu, keep_bl)

    joined_blz = jnp.concatenate([text_blu, out["multiview_fused_masked"]], -1)
    pre_blu = jax.nn.relu(linear(state, "fusion_linear", joined_blz))
    heads = model["final_Transformer_head"]
    fused_blu, _ = attention(state, "text_transformer", pre_blu, keep_bl[:, None, :], heads)
    final_bu = jnp.max(fused_blu, 1)
    out |= {"text_fusion_pre": pre_blu, "text_fusion": fused_blu, "final_feature": final_bu}
    for task in ("opinion", "emotion"):
        logits_bc = linear(state, f"{task}_classifier_head.classLinear", final_bu)
        out[f"{task}_predict"] = jax.nn.softmax(logits_bc, -1)
    return out


def losses(state: State, outputs: State, batch: State) -> dict[str, Array]:
    """Focal losses on the probabilities (gamma 2, mean over the batch) and their sum."""
    out = {}
    for task in ("opinion", "emotion"):
        score_bc, label_bc = outputs[f"{task}_predict"], batch[f"{task}_label"]
        weight_c = jax.lax.stop_gradient(state[f"{task}_loss.weight"])
        surprise_bc = -jnp.log(score_bc + 1e-7) + 1e-7
        term_bc = weight_c[None] * (1 - score_bc) ** 2 * label_bc * surprise_bc
        out[f"{task}_loss"] = jnp.mean(jnp.sum(term_bc, -1))
    return out | {"total_loss": out["opinion_loss"] + out["emotion_loss"]}


def run(state: State, model: Mapping[str, Any], roberta: Mapping[str, Any], batch: State) -> tuple:
    """(total loss, all outputs and losses): the function to differentiate, `has_aux=True`."""
    out = forward(state, model, roberta, batch)
    out |= losses(state, out, batch)
    return out["total_loss"], out


# Video, text and one scale


def convolve(state: State, name: str, x_btd: Array) -> Array:
    """ReLU of a width-3 convolution with one zero step on either side; weight [out, in, 3]."""
    padded_btd = jnp.pad(x_btd, ((0, 0), (1, 1), (0, 0)))
    length = x_btd.shape[1]
    taps = [
        jnp.einsum("btd,od->bto", padded_btd[:, tap : tap + length], tap_od)
        for tap, tap_od in enumerate(jnp.moveaxis(state[name + ".weight"], 2, 0))
    ]
    return jax.nn.relu(sum(taps) + state[name + ".bias"][None, None])


def one_scale(
    state: State,
    model: Mapping[str, Any],
    scale: int,
    frames_btd: Array,
    text_blu: Array,
    keep_bt: Array,
    keep_bl: Array,
) -> dict:
    """Consensus, grounding and weighted sum of one scale; arrays (b, ...) by golden name."""
    name = f"stack_Consensus_Transformer_inview.{scale}"
    size, num_frames = frames_btd.shape[0], frames_btd.shape[1]
    visual_btw = jax.nn.relu(linear(state, f"{name}.visualLinear", frames_btd))
    words_blw = jax.nn.relu(linear(state, f"{name}.textLinear", text_blu))
    token_bkw = jnp.broadcast_to(state["consensus_token"], (size, 1, words_blw.shape[-1]))
    joint_bzw = jnp.concatenate([visual_btw, token_bkw, words_blw], 1)
    keep_bz = jnp.concatenate([keep_bt, jnp.ones((size, 1), bool), keep_bl], 1)
    keep_bxy = jnp.broadcast_to(keep_bz[:, None, :], (size, keep_bz.shape[1], keep_bz.shape[1]))
    if model["consensus_mask"]:
        part_z = jnp.sign(jnp.arange(keep_bz.shape[1]) - num_frames)  # -1 frame, 0 token, 1 word
        keep_bxy &= (part_z[:, None] * part_z[None, :] != -1)[None]
    heads = model["consensus_Transformer_head"]
    seen_bzw, probs_bhxy = attention(state, f"{name}.transformer", joint_bzw, keep_bxy, heads)
    consensus_bw = seen_bzw[:, num_frames]

    weight_bht = ground(state, consensus_bw, frames_btd, model["groundAttention_head"])
    cell_bt = lstm_cell(state, "ground_lstm", jnp.swapaxes(weight_bht, 1, 2))
    score_bt = jax.nn.relu(cell_bt)
    return {
        "cnn_features": frames_btd,
        "consensus_features": consensus_bw,
        "consensus_attention_rows": jnp.mean(probs_bhxy[:, :, num_frames], 1),
        "grounding_attention": weight_bht,
        "lstm_cell_final": cell_bt,
        "cg_score": score_bt,
        "grounding_features": jnp.einsum("bt,btd->bd", score_bt, frames_btd),
    }


def ground(state: State, query_bw: Array, frames_btd: Array, heads: int) -> Array:
    """Attention of the consensus token over all frames, padded ones too: weights (b,h,t)."""
    name = "grounding_Attention"
    query_bias_o, key_bias_o, _ = jnp.split(state[name + ".in_proj_bias"], 3)
    query_bxo = affine(query_bw[:, None], state[name + ".q_proj_weight"], query_bias_o)
    key_bto = affine(frames_btd, state[name + ".k_proj_weight"], key_bias_o)
    query_bhxe, key_bhte = split_heads(query_bxo, heads), split_heads(key_bto, heads)
    logits_bhxt = jnp.einsum("bhxe,bhte->bhxt", query_bhxe, key_bhte)
    return jax.nn.softmax(logits_bhxt / query_bhxe.shape[-1] ** 0.5, -1)[:, :, 0]


def lstm_cell(state: State, name: str, input_bth: Array) -> Array:
    """Cell state after the last step of a one-layer LSTM, gates in the order i, f, g, o."""
    from_input = state[name + ".weight_ih_l0"], state[name + ".bias_ih_l0"]
    from_hidden = state[name + ".weight_hh_l0"], state[name + ".bias_hh_l0"]

    def step(carry: tuple, input_bh: Array) -> tuple:
        hidden_bo, cell_bo = carry
        gates_bj = affine(input_bh, *from_input) + affine(hidden_bo, *from_hidden)
        enter_bo, forget_bo, new_bo, leave_bo = jnp.split(gates_bj, 4, -1)
        cell_bo = jax.nn.sigmoid(forget_bo) * cell_bo + jax.nn.sigmoid(enter_bo) * jnp.tanh(new_bo)
        return (jax.nn.sigmoid(leave_bo) * jnp.tanh(cell_bo), cell_bo), None

    zero_bo = jnp.zeros((input_bth.shape[0], from_hidden[0].shape[1]), input_bth.dtype)
    (_, cell_bo), _ = jax.lax.scan(step, (zero_bo, zero_bo), jnp.swapaxes(input_bth, 0, 1))
    return cell_bo


def fuse(state: State, ground_bsd: Array, text_blu: Array, keep_bl: Array) -> dict:
    """Each word attends over the scales, unscaled and unmasked; padded words then become zero."""
    name = "multiview_attention_fusion"
    text_bla = linear(state, name + ".ffn_text", text_blu)
    video_bsa = linear(state, name + ".ffn_visual", ground_bsd)
    weight_bls = jax.nn.softmax(jnp.einsum("bla,bsa->bls", text_bla, video_bsa), -1)
    fused_bld = jnp.einsum("bls,bsd->bld", weight_bls, ground_bsd)
    return {
        "multiview_attention": weight_bls,
        "multiview_fused": fused_bld,
        "multiview_fused_masked": fused_bld * keep_bl[..., None],
    }


def encode_text(state: State, roberta: Mapping[str, Any], ids_bl: Array, keep_bl: Array) -> Array:
    """Last hidden states (b,l,u) of RoBERTa; positions count the real tokens from 2, pads are 1."""
    name, eps = TEXT + "embeddings.", roberta["layer_norm_eps"]
    real_bl = ids_bl != PAD_ID
    position_bl = jnp.cumsum(real_bl, 1) * real_bl + PAD_ID
    x_blu = frozen_pad(state[name + "word_embeddings.weight"])[ids_bl]
    x_blu += frozen_pad(state[name + "position_embeddings.weight"])[position_bl]
    x_blu += state[name + "token_type_embeddings.weight"][:1, None]
    x_blu = layer_norm(state, name + "LayerNorm", x_blu, eps)
    for layer in range(roberta["num_hidden_layers"]):
        name = f"{TEXT}encoder.layer.{layer}."
        mixed_blu = self_attention(state, name, x_blu, keep_bl, roberta["num_attention_heads"])
        mixed_blu = linear(state, name + "attention.output.dense", mixed_blu)
        x_blu = layer_norm(state, name + "attention.output.LayerNorm", x_blu + mixed_blu, eps)
        inner_blo = linear(state, name + "intermediate.dense", x_blu)
        inner_blu = linear(state, name + "output.dense", jax.nn.gelu(inner_blo, approximate=False))
        x_blu = layer_norm(state, name + "output.LayerNorm", x_blu + inner_blu, eps)
    return x_blu


def self_attention(state: State, name: str, x_blu: Array, keep_bl: Array, heads: int) -> Array:
    """Self-attention of one RoBERTa layer, before its output projection."""
    query_bxo, key_byo, value_byo = (
        linear(state, f"{name}attention.self.{part}", x_blu) for part in ("query", "key", "value")
    )
    return attend(query_bxo, key_byo, value_byo, keep_bl[:, None, :], heads)[0]


# Small parts


def linear(state: State, name: str, x: Array) -> Array:
    """`affine` with the weight and bias of one module."""
    return affine(x, state[name + ".weight"], state[name + ".bias"])


def affine(x: Array, weight_oi: Array, bias_o: Array) -> Array:
    """x W^T + b over the last axis of x, which has any number of axes."""
    product = jnp.einsum("...i,oi->...o", x, weight_oi)
    return product + along(bias_o, product)


def along(vector: Array, x: Array) -> Array:
    """The vector with as many axes as x, its own axis last."""
    return jnp.expand_dims(vector, tuple(range(x.ndim - 1)))


def layer_norm(state: State, name: str, x: Array, eps: float) -> Array:
    """Layer normalisation over the last axis with the biased variance."""
    centred = x - jnp.mean(x, -1, keepdims=True)
    variance = jnp.mean(centred**2, -1, keepdims=True)
    normal = centred / jnp.sqrt(variance + eps)
    return normal * along(state[name + ".weight"], x) + along(state[name + ".bias"], x)


def frozen_pad(table_vu: Array) -> Array:
    """The table with no gradient into its padding row, as torch's `padding_idx` has it."""
    is_pad_v1 = (jnp.arange(table_vu.shape[0]) == PAD_ID)[:, None]
    return jnp.where(is_pad_v1, jax.lax.stop_gradient(table_vu), table_vu)


def attention(state: State, name: str, x_bxi: Array, keep_bxy: Array, heads: int) -> tuple:
    """Multi-head self-attention with one [3 o, i] projection: (output, weights (b,h,x,y))."""
    packed = affine(x_bxi, state[name + ".in_proj_weight"], state[name + ".in_proj_bias"])
    parts = jnp.split(packed, 3, -1)
    mixed_bxo, probs_bhxy = attend(*parts, keep_bxy, heads)
    return linear(state, name + ".out_proj", mixed_bxo), probs_bhxy


def attend(
    query_bxo: Array, key_byo: Array, value_byo: Array, keep_bxy: Array, heads: int
) -> tuple[Array, Array]:
    """softmax(q k / sqrt(e)) v per head; `keep_bxy` may have size 1 in x. (mixed, weights)."""
    query_bhxe, key_bhye = split_heads(query_bxo, heads), split_heads(key_byo, heads)
    logits_bhxy = jnp.einsum("bhxe,bhye->bhxy", query_bhxe, key_bhye)
    logits_bhxy = logits_bhxy / query_bhxe.shape[-1] ** 0.5
    probs_bhxy = jax.nn.softmax(jnp.where(keep_bxy[:, None], logits_bhxy, -jnp.inf), -1)
    mixed_bxhe = jnp.einsum("bhxy,bhye->bxhe", probs_bhxy, split_heads(value_byo, heads))
    return mixed_bxhe.reshape(query_bxo.shape), probs_bhxy


def split_heads(x_bxo: Array, heads: int) -> Array:
    """(b,x,o) -> (b,h,x,e), o = h e."""
    return jnp.swapaxes(x_bxo.reshape(*x_bxo.shape[:2], heads, -1), 1, 2)


# Parameters and updates


def shapes(model: Mapping[str, Any], roberta: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor of the published state dict, unused ones included."""
    d, u, w = model["visualcnn_dim"], model["text_dim"], model["consensus_Transformer_fdim"]
    t, h, a = model["visual_length"], model["groundAttention_head"], model["vtalign_ground_dim"]
    mlp = roberta["intermediate_size"]
    linears = {
        "fusion_linear": (u, u + d),
        "multiview_attention_fusion.ffn_text": (a, u),
        "multiview_attention_fusion.ffn_visual": (a, d),
        "visual_encoder.linear.conv1d": (d, model["visual_dim"], 1),
        "grounding_Attention.out_proj": (w, w),
        TEXT + "pooler.dense": (u, u),
    }
    out: dict[str, tuple[int, ...]] = {
        "consensus_token": (1, w),
        "grounding_Attention.in_proj_bias": (3 * w,),
        "grounding_Attention.q_proj_weight": (w, w),
        "grounding_Attention.k_proj_weight": (w, d),
        "grounding_Attention.v_proj_weight": (w, d),
        "ground_lstm.weight_ih_l0": (4 * t, h),
        "ground_lstm.weight_hh_l0": (4 * t, t),
        "ground_lstm.bias_ih_l0": (4 * t,),
        "ground_lstm.bias_hh_l0": (4 * t,),
        TEXT + "embeddings.word_embeddings.weight": (roberta["vocab_size"], u),
        TEXT + "embeddings.position_embeddings.weight": (roberta["max_position_embeddings"], u),
        TEXT + "embeddings.token_type_embeddings.weight": (roberta["type_vocab_size"], u),
    }
    attentions, norms = {"text_transformer": u}, [TEXT + "embeddings.LayerNorm"]
    for task in ("opinion", "emotion"):
        linears[f"{task}_classifier_head.classLinear"] = (model[f"{task}_num"], u)
        out[f"{task}_loss.weight"] = (model[f"{task}_num"],)
    for scale in range(model["multiview_num"]):
        name = f"stack_Consensus_Transformer_inview.{scale}."
        linears[f"stack_cnn.{scale}.conv"] = (d, d, 3)
        linears |= {name + "visualLinear": (w, d), name + "textLinear": (w, u)}
        attentions[name + "transformer"] = w
    for layer in range(roberta["num_hidden_layers"]):
        name = f"{TEXT}encoder.layer.{layer}."
        linears |= {f"{name}attention.self.{part}": (u, u) for part in ("query", "key", "value")}
        linears |= {name + "attention.output.dense": (u, u)}
        linears |= {name + "intermediate.dense": (mlp, u), name + "output.dense": (u, mlp)}
        norms += [name + "attention.output.LayerNorm", name + "output.LayerNorm"]
    for name, o in attentions.items():
        out |= {name + ".in_proj_weight": (3 * o, o), name + ".in_proj_bias": (3 * o,)}
        linears[name + ".out_proj"] = (o, o)
    for name, shape in linears.items():
        out |= {name + ".weight": shape, name + ".bias": shape[:1]}
    return out | {f"{name}.{part}": (u,) for name in norms for part in ("weight", "bias")}


def adamw_losses(
    value_and_grad: Callable[[State], tuple], state: State, settings: Mapping[str, Any], rule: str
) -> Sequence[float]:
    """Loss before each update of AdamW without weight decay, written out in numpy.

    Args:
        value_and_grad: parameters -> (loss, gradients); parameters without one stay as they are.
        state: parameters by name.
        settings: `lr` (one rate per update), `betas`, `eps`.
        rule: "hf" adds eps to sqrt(v), "torch" to sqrt(v) after the bias correction.
    """
    (beta1, beta2), eps = settings["betas"], settings["eps"]
    state, seen = dict(state), []
    first = {name: np.zeros_like(value) for name, value in state.items()}
    second = dict(first)
    for t, lr in enumerate(settings["lr"], 1):
        loss, grads = value_and_grad(state)
        seen.append(float(loss))
        for name, grad in grads.items():
            grad = np.asarray(grad)
            first[name] = beta1 * first[name] + (1 - beta1) * grad
            second[name] = beta2 * second[name] + (1 - beta2) * grad**2
            unbias = np.sqrt(1 - beta2**t)
            shift = eps if rule == "hf" else eps * unbias
            step = lr * unbias / (1 - beta1**t) * first[name] / (np.sqrt(second[name]) + shift)
            state[name] = (state[name] - step).astype(grad.dtype)
    return seen
