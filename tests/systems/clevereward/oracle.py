"""The whole system once more, in PyTorch from the specification, over our parameter tree."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np


def tensors(tree: Any) -> Any:
    """Leaves with a gradient."""
    import torch

    if isinstance(tree, Mapping):
        return {name: tensors(branch) for name, branch in tree.items()}
    return torch.tensor(np.asarray(tree), requires_grad=True)


def gradients(tree: Any) -> Any:
    """What backward left at each leaf; zeros where nothing."""
    if isinstance(tree, Mapping):
        return {name: gradients(branch) for name, branch in tree.items()}
    return np.zeros(tree.shape) if tree.grad is None else tree.grad.numpy()


def affine(x: Any, params: Any) -> Any:
    return x @ params["kernel"] + params["bias"]


def mean(x: Any, keep: Any) -> Any:
    total = (x * keep[..., None]).sum(-2)
    return total / keep.sum(-1).clamp(min=1)[..., None]


def attention_pool(x: Any, keep: Any, params: Any) -> Any:
    import torch

    logits = (x @ params["query"]).masked_fill(~keep, -1e30)
    return (torch.softmax(logits, -1)[..., None] * x).sum(-2)


def transformer_pool(x: Any, keep: Any, params: Any, num_layers: int) -> Any:
    """Pre-norm layers by torch's own attention."""
    import torch
    from torch.nn import functional

    def norm(x: Any, p: Any) -> Any:
        return functional.layer_norm(x, x.shape[-1:], p["scale"], p["bias"], 1e-5)

    x = affine(x, params["project"])
    length, width = x.shape[-2:]
    place = torch.zeros(length, width)
    for t in range(length):
        for i in range(0, width, 2):
            place[t, i] = math.sin(t / 10000 ** (i / width))
            place[t, i + 1] = math.cos(t / 10000 ** (i / width))
    x = x + place
    for number in range(num_layers):
        p = params[f"layer_{number}"]
        a, normed = p["attention"], norm(x, p["norm_attention"])
        q, k, v = (
            torch.einsum("ntd,dhe->nhte", normed, a[f"{n}_kernel"])
            for n in ("query", "key", "value")
        )
        q, v = q + a["query_bias"][:, None], v + a["value_bias"][:, None]
        mixed = functional.scaled_dot_product_attention(q, k, v, keep[:, None, None])
        x = x + torch.einsum("nhte,hed->ntd", mixed, a["out_kernel"]) + a["out_bias"]
        inner = functional.gelu(affine(norm(x, p["norm_mlp"]), p["mlp_in"]))
        x = x + affine(inner, p["mlp_out"])
    return mean(norm(x, params["norm"]), keep)


def towers(config: Any, params: Any, batch: Any) -> tuple[Any, Any]:
    """Unit vectors of the videos (b,2,d) and of the questions (b,d)."""
    import torch

    model = config["model"]
    frames, words = (torch.tensor(batch[name]) for name in ("frames_bvtf", "words_ble"))
    keep, keep_words = (torch.tensor(batch[name]) >= 0 for name in ("video_bvt", "text_bl"))
    rows, keep = frames.flatten(0, 1), keep.flatten(0, 1)
    pools = {
        "mean": lambda x, keep, name: mean(x, keep),
        "attention": lambda x, keep, name: attention_pool(x, keep, params[name]),
        "transformer": lambda x, keep, name: transformer_pool(
            x, keep, params[name], model["num_layers"]
        ),
    }
    video = affine(pools[model["pool_video"]](rows, keep, "pool_video"), params["video"])
    text = affine(pools[model["pool_text"]](words, keep_words, "pool_text"), params["text"])
    unit = torch.nn.functional.normalize
    return unit(video, dim=-1).unflatten(0, (len(frames), 2)), unit(text, dim=-1)


def rewards(config: Any, params: Any, batch: Any, video: Any, text: Any) -> Any:
    """(b,2)."""
    import torch
    from torch.nn import functional

    model = config["model"]
    if model["head"] == "regression":
        text = text[:, None].expand_as(video)
        joint = torch.cat([video, text, video * text], -1)
        out = affine(functional.gelu(affine(joint, params["hidden"])), params["out"])
        pick = torch.tensor(batch["dimension_b"]).long()[:, None, None].expand(-1, 2, 1)
        return out.gather(-1, pick)[..., 0]
    scale = params["logit_scale"].exp() if model["scale"] == "learned" else 1
    return scale * functional.cosine_similarity(video, text[:, None], dim=-1)


def loss(config: Any, params: Any, batch: Any) -> tuple[Any, Any]:
    """Loss and rewards. Bradley-Terry, or Rao-Kupper, or squared z-scores; contrast if asked.

    Scores are taken to have mean 0 and deviation 1.
    """
    import torch
    from torch.nn import functional

    options, model = config["loss"], config["model"]
    video, text = towers(config, params, batch)
    reward = rewards(config, params, batch, video, text)
    answer, valid = torch.tensor(batch["answer_b"]), torch.tensor(batch["valid_b"])
    weight = torch.tensor(batch["weight_b"]) * valid
    if options["kind"] == "mse":
        source, dimension = (torch.tensor(batch[n]).long() for n in ("source_b", "dimension_b"))
        own, score = params["loss"], torch.tensor(batch["score_bv"])
        a, b = (own[n][source, dimension][:, None] for n in ("source_scale", "source_bias"))
        weight = weight[:, None] * ~score.isnan()
        error = (a.exp() * reward + b - score.nan_to_num()) ** 2
        return (weight * error).sum() / weight.sum(), reward
    difference = reward[:, 0] - reward[:, 1]
    if options["kind"] == "btt":
        k = 1 + functional.softplus(params["loss"]["tie_bias"])
        a, b = torch.sigmoid(difference - k.log()), torch.sigmoid(-difference - k.log())
        tie = (k**2 - 1) * a * b
        value = -torch.where(answer > 0, a, torch.where(answer < 0, b, tie)).log()
    else:
        value = -functional.logsigmoid(difference * answer)
        weight = weight * (answer != 0)
    total = (weight * value).sum() / weight.sum()
    if options["negatives"] in ("inbatch", "both"):
        scale = params["logit_scale"].exp() if model["scale"] == "learned" else 1
        total = total + options["contrastive"] * contrast(batch, scale * video, text)
    return total, reward


def contrast(batch: Any, video: Any, text: Any) -> Any:
    """Two cross-entropies over the rows that take part, by a boolean index and torch's own loss."""
    import torch
    from torch.nn import functional

    group, question = batch["group_b"].tolist(), batch["question_b"]
    part = batch["valid_b"] & np.isin(batch["dimension_b"], (4, 6)) & (batch["answer_b"] != 0)
    kept = [
        i for i in np.flatnonzero(part) if group[i] not in [group[j] for j in range(i) if part[j]]
    ]
    side = torch.tensor((batch["answer_b"][kept] < 0).astype(int))
    logits = video[kept, side] @ text[kept].T
    same = torch.tensor(question[kept][:, None] == question[kept][None])
    logits = logits.masked_fill(same & ~torch.eye(len(kept), dtype=bool), -math.inf)
    target = torch.arange(len(kept))
    return (
        functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)
    ) / 2
