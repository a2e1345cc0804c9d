"""The published VC-CSA state dict <-> parameters of our model.

A published tensor is one of our leaves, or several side by side; PyTorch puts the output width
first, we put it last. Some published tensors cannot change any output (see `to_published`); they
have no leaf here.

Source: names and layouts of `VC-CSA code, model_VCCSA.py`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from jaxvsa.core.errors import UserError, nearest
from jaxvsa.core.trees import named, nest
from jaxvsa.interop import roberta

TEXT = "text_encoder.text_encoder."


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """A published tensor: leaves side by side along `axis`; None is a part without influence."""

    name: str
    parts: tuple[str | None, ...]
    scale: int | None = None  # the leaves' leading index, where they are stacked over scales
    axis: int = 0


def from_published(state: Mapping[str, np.ndarray], like: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters from a published state dict.

    Args:
        state: arrays by published name. Tensors without influence may be missing, and so may
            parts of the text encoder that it does not use (`roberta.IGNORED`).
        like: the model's own parameters, arrays or `jax.ShapeDtypeStruct`; heads, shapes and
            dtypes are taken from there.

    Raises:
        UserError: a tensor is missing, left over or of another shape than the model's
            configuration makes it; `like` is a model that the published code does not have.
    """
    blank = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), dict(like))
    live, every, leaves = live_tensors(blank), to_published(blank), named(blank)
    for name in live:
        if name not in state:
            raise UserError(f"tensor '{name}' is missing{nearest(name, state)}")
    for name, array in state.items():
        if name not in every:
            if _unused_text(name):
                continue
            raise UserError(f"tensor '{name}' has no place in the model{nearest(name, every)}")
        if array.shape != every[name].shape:
            raise UserError(
                f"tensor '{name}' is {array.shape}, but the configuration makes it "
                f"{every[name].shape}"
            )
    text = named(roberta.from_names(state, TEXT))
    leaves |= {
        f"text/{path}": leaf.astype(leaves[f"text/{path}"].dtype) for path, leaf in text.items()
    }
    for tensor in _tensors(leaves):
        pieces = np.split(state[tensor.name], _cuts(leaves, tensor), tensor.axis)
        for path, piece in zip(tensor.parts, pieces, strict=True):
            if path is not None:
                leaf = leaves[path] if tensor.scale is None else leaves[path][tensor.scale]
                leaf[...] = piece.T.reshape(leaf.shape)
    return nest(leaves)


def to_published(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The state dict, complete, so that the published code loads it strictly.

    Tensors and parts that cannot change an output get a neutral value: class weights of the loss
    1 / number of classes; zero for the biases of all keys and of the scales (softmax does not see
    them), for value and output projection of the grounding attention, of which only the weights
    are used, and for RoBERTa's pooler.

    Raises:
        UserError: a model that the published code does not have.
    """
    state = live_tensors(params)
    leaves = {path: np.asarray(leaf) for path, leaf in named(params).items()}
    width, frame = state["consensus_token"].shape[1], state["stack_cnn.0.conv.bias"].size
    text = state["fusion_linear.bias"].size
    shapes = {
        "grounding_Attention.out_proj.weight": (width, width),
        "grounding_Attention.out_proj.bias": (width,),
        "multiview_attention_fusion.ffn_visual.bias": leaves["words_bias"].shape,
        f"{TEXT}pooler.dense.weight": (text, text),
        f"{TEXT}pooler.dense.bias": (text,),
    }
    if frame != width:
        shapes["grounding_Attention.v_proj_weight"] = (width, frame)
    dtype = state["consensus_token"].dtype
    state |= {name: np.zeros(shape, dtype) for name, shape in shapes.items()}
    for task in _tasks(leaves):
        num_classes = leaves[f"head_{task}_bias"].size
        state[f"{task}_loss.weight"] = np.full(num_classes, 1 / num_classes, dtype)
    return state


def live_tensors(tree: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The tensors of `to_published` that have a leaf of ours; parts without influence are zero.

    Also right for a tree of gradients, where a part without influence has gradient zero.
    """
    leaves = {path: np.asarray(leaf) for path, leaf in named(tree).items()}
    state = {}
    for tensor in _tensors(leaves):
        known = [
            None if path is None else _outward(path, leaves[path], tensor.scale)
            for path in tensor.parts
        ]
        blank = np.zeros_like(next(part for part in known if part is not None))
        parts = [blank if part is None else part for part in known]
        state[tensor.name] = parts[0] if len(parts) == 1 else np.concatenate(parts, tensor.axis)
    return state | roberta.to_names(tree["text"], TEXT)


def _tensors(leaves: Mapping[str, np.ndarray]) -> Iterator[_Tensor]:
    """All published tensors outside the text encoder that have at least one leaf."""
    _check_published(leaves)
    num_scales = leaves["consensus/video_bias"].shape[0]
    yield _Tensor("consensus_token", ("token",))
    yield from _linear("visual_encoder.linear.conv1d", "pyramid/project_{}")
    for scale in range(num_scales):
        yield from _linear(f"stack_cnn.{scale}.conv", f"pyramid/conv_{{}}_{scale}")
        outer = f"stack_Consensus_Transformer_inview.{scale}."
        yield from _linear(outer + "visualLinear", "consensus/video_{}", scale)
        yield from _linear(outer + "textLinear", "consensus/text_{}", scale)
        yield from _attention(outer + "transformer", "consensus/layer_0/", scale)
    yield from _grounding(leaves)
    for kind, published in (("input", "ih"), ("hidden", "hh")):
        yield _Tensor(f"ground_lstm.weight_{published}_l0", (f"cell/{kind}_kernel",))
        yield _Tensor(f"ground_lstm.bias_{published}_l0", (f"cell/{kind}_bias",))
    yield from _linear("multiview_attention_fusion.ffn_text", "words_{}")
    yield _Tensor("multiview_attention_fusion.ffn_visual.weight", ("scales_kernel",))
    both = ("fusion_text_kernel", "fusion_video_kernel")
    yield _Tensor("fusion_linear.weight", both, axis=1)
    yield _Tensor("fusion_linear.bias", ("fusion_bias",))
    yield from _attention("text_transformer", "final/")
    for task in _tasks(leaves):
        yield from _linear(f"{task}_classifier_head.classLinear", f"head_{task}_{{}}")


def _linear(name: str, path: str, scale: int | None = None) -> Iterator[_Tensor]:
    yield _Tensor(f"{name}.weight", (path.format("kernel"),), scale)
    yield _Tensor(f"{name}.bias", (path.format("bias"),), scale)


def _attention(name: str, path: str, scale: int | None = None) -> Iterator[_Tensor]:
    kernels = (f"{path}query_kernel", f"{path}key_kernel", f"{path}value_kernel")
    biases = (f"{path}query_bias", None, f"{path}value_bias")
    yield _Tensor(f"{name}.in_proj_weight", kernels, scale)
    yield _Tensor(f"{name}.in_proj_bias", biases, scale)
    yield from _linear(f"{name}.out_proj", f"{path}out_{{}}", scale)


def _grounding(leaves: Mapping[str, np.ndarray]) -> Iterator[_Tensor]:
    """PyTorch joins the three projections only where frames and queries have one width."""
    name, query, key = "grounding_Attention", "grounding/query_kernel", "grounding/key_kernel"
    if leaves[query].shape == leaves[key].shape:
        yield _Tensor(f"{name}.in_proj_weight", (query, key, None))
    else:
        yield _Tensor(f"{name}.q_proj_weight", (query,))
        yield _Tensor(f"{name}.k_proj_weight", (key,))
    yield _Tensor(f"{name}.in_proj_bias", ("grounding/query_bias", None, None))


def _outward(path: str, leaf: np.ndarray, scale: int | None) -> np.ndarray:
    """A leaf in PyTorch's layout, output width first; `piece.T.reshape(leaf.shape)` goes back."""
    if scale is not None:
        leaf = leaf[scale]
    last = path.rsplit("/", 1)[-1]
    if "kernel" not in last:
        return leaf if last == "token" else leaf.reshape(-1)
    if last == "project_kernel":
        return leaf[None].T
    if last.startswith("conv_kernel"):
        return leaf.reshape(3, -1, leaf.shape[-1]).T
    if last == "out_kernel":
        return leaf.reshape(-1, leaf.shape[-1]).T
    return leaf.reshape(leaf.shape[0], -1).T


def _cuts(leaves: Mapping[str, np.ndarray], tensor: _Tensor) -> list[int]:
    """Where the parts of a tensor meet: three of one size, or two in the fusion."""
    first = next(path for path in tensor.parts if path is not None)
    size = _outward(first, leaves[first], tensor.scale).shape[tensor.axis]
    return [size * index for index in range(1, len(tensor.parts))]


def _check_published(leaves: Mapping[str, np.ndarray]) -> None:
    """The published code has both inputs, one consensus layer and one token."""
    if "consensus/text_kernel" not in leaves or "fusion_video_kernel" not in leaves:
        raise UserError("only variant 'both' has published names: this model lacks text or video")
    if "consensus/layer_1/query_kernel" in leaves or leaves["token"].shape[0] != 1:
        raise UserError("only one consensus layer and one token have published names")


def _tasks(leaves: Mapping[str, np.ndarray]) -> list[str]:
    found = (re.fullmatch(r"head_(.+)_kernel", path) for path in leaves)
    return [match[1] for match in found if match]


def _unused_text(name: str) -> bool:
    rest = name.removeprefix(TEXT)
    return name.startswith(TEXT) and any(re.fullmatch(p, rest) for p in roberta.IGNORED)
