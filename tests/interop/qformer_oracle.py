"""The Q-Former in both libraries: tiny settings, random parameters, and two oracles in torch.

`hf_frames` is the image model of transformers, frame by frame. `Video` is the video model, put
together from the layers of the same model: its attention modules with the low-rank changes added
to their weights, its networks, and between them what the paper adds. Routed attention, which
transformers does not have, is written out from the equations with one softmax per mask.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np
import pytest

from jaxvsa.core.precision import Precision
from jaxvsa.core.trees import named, nest
from jaxvsa.interop.blip import read_qformer, to_names
from jaxvsa.layers.lora import LoraOptions
from jaxvsa.layers.qformer import QFormer, QFormerOptions
from jaxvsa.layers.routing import RoutingOptions
from jaxvsa.layers.tokens import Words

SIZES: dict[str, Any] = {
    "num_layers": 4, "width": 32, "num_heads": 4, "mlp_width": 40, "num_queries": 5,
    "vocab_size": 31, "max_positions": 12, "cross_every": 2, "norm_eps": 1e-12, "max_frames": 8,
    "temporal": True, "temporal_gate": "none", "order": "s-t-c", "temporal_tokens": "query",
    "aggregate": "concat", "dropout": 0.0,
}  # fmt: skip
PLAIN: dict[str, Any] = {
    "enabled": False, "combine": "hadamard", "orders": (0, 1, 2, 3), "schedule": "grow",
    "cross_modal": "full", "temporal": True, "pool": "query", "hidden": 6, "norm": "softmax",
    "routing": "soft", "tau": 1.0, "tau_last": 0.1, "tau_updates": 0, "first_bias": 3.0,
}  # fmt: skip
LORA = LoraOptions(3, 6.0, ("space", "time", "cross"))
STILL = ("lora_", "_position")
NEW = ("lora_", "_position", "router_", "time_gate")
PATCHES, VISION_WIDTH = 7, 24


def make(lora: LoraOptions = LORA, routing: dict[str, Any] | None = None, **sizes: Any) -> QFormer:
    return QFormer(
        QFormerOptions(**{**SIZES, **sizes}), lora, RoutingOptions(**{**PLAIN, **(routing or {})}),
        Precision(),
    )  # fmt: skip


def inputs(
    num_frames: int, text: bool = True, rows: int = 2, patches: int = PATCHES,
    vision_width: int = VISION_WIDTH, words: int = 6, vocab_size: int = 31,
) -> tuple[Any, ...]:  # fmt: skip
    rng = np.random.default_rng(num_frames)
    frames = rng.normal(size=(rows, num_frames, patches, vision_width)).astype(np.float32)
    if not text:
        return frames, None, None, np.arange(rows)
    ids_bl = rng.integers(1, vocab_size, (rows, words)).astype(np.int32)
    keep_bl = np.arange(words)[None] < np.array([words, words - 2, words - 1, 3])[:rows, None]
    return frames, np.where(keep_bl, ids_bl, 0), keep_bl, np.arange(rows)


def ours(frames: Any, ids_bl: Any, keep_bl: Any, example_b: Any) -> tuple[Any, ...]:
    """Arguments of our module from `inputs`."""
    words = None if ids_bl is None else Words.rectangle(ids_bl, keep_bl)
    return frames, words, example_b


@functools.cache
def random_params(qformer: QFormer, text: bool = True, scale: float = 0.2) -> Any:
    """Every leaf random, low-rank changes and positions too."""
    shapes = jax.eval_shape(
        lambda: qformer.init(jax.random.key(0), *ours(*inputs(2, text)), True)
    )["params"]  # fmt: skip
    return random_like(shapes, scale)


def random_like(shapes: Any, scale: float) -> Any:
    rng = np.random.default_rng(7)
    return nest({
        path: (path.endswith("scale") + scale * rng.normal(size=x.shape)).astype(np.float32)
        for path, x in named(shapes).items()
    })  # fmt: skip


def without(params: Any, *parts: str) -> Any:
    """Leaves whose path holds one of `parts` are zero."""
    return nest({
        path: np.zeros_like(leaf) if any(part in path for part in parts) else leaf
        for path, leaf in named(params).items()
    })  # fmt: skip


@functools.partial(jax.jit, static_argnums=0)
def apply(qformer: QFormer, params: Any, *args: Any) -> jax.Array:
    return qformer.apply({"params": params}, *ours(*args), True)


def hf_model(qformer: QFormer, params: Any, vision_width: int = VISION_WIDTH) -> Any:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    options = qformer.options
    common = {
        "hidden_size": options.width, "num_hidden_layers": options.num_layers,
        "num_attention_heads": options.num_heads, "intermediate_size": options.mlp_width,
        "encoder_hidden_size": vision_width, "cross_attention_frequency": options.cross_every,
        "layer_norm_eps": options.norm_eps, "attn_implementation": "eager",
    }  # fmt: skip
    if options.vocab_size:
        model = transformers.InstructBlipQFormerModel(
            transformers.InstructBlipQFormerConfig(
                **common, vocab_size=options.vocab_size,
                max_position_embeddings=options.max_positions, pad_token_id=0,
            )
        )  # fmt: skip
    else:
        model = transformers.Blip2QFormerModel(
            transformers.Blip2QFormerConfig(**common, use_qformer_text_input=False)
        )
    tensors = to_names(params, options, prefix="")
    del tensors["query_tokens"]
    state = {name: torch.tensor(np.ascontiguousarray(array)) for name, array in tensors.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected, unexpected
    # The last layers of a model without text have networks for it that nothing runs.
    assert all("position_ids" in name for name in missing), missing
    return model.eval()


def hf_frames(model: Any, params: Any, args: tuple[Any, ...]) -> np.ndarray:
    """The image model, frame by frame: (b,tq,d)."""
    torch = pytest.importorskip("torch")
    frames, ids_bl, keep_bl, _ = args
    rows, num_frames = frames.shape[:2]
    dtype = next(model.parameters()).dtype
    query_qd = torch.tensor(params["queries"], dtype=dtype)
    found = []
    with torch.no_grad():
        for t in range(num_frames):
            more = {}
            if ids_bl is not None:
                ones = np.ones((rows, len(query_qd)), np.int64)
                keep = np.concatenate([ones, keep_bl.astype(np.int64)], axis=1)
                more = {"input_ids": torch.tensor(ids_bl).long(),
                        "attention_mask": torch.tensor(keep)}  # fmt: skip
            out = model(
                query_embeds=query_qd[None].expand(rows, -1, -1),
                encoder_hidden_states=torch.tensor(frames[:, t], dtype=dtype), **more,
            )  # fmt: skip
            found.append(out.last_hidden_state[:, : len(query_qd)].numpy())
    return np.concatenate(found, axis=1)


def routed_probs(
    torch: Any, score: Any, keep: Any, weight: Any, sees: list[Any], combine: str
) -> Any:
    """Attention weights under routing; TRAR's own semantics under "mixture".

    Args:
        torch: the library.
        score: (b,h,q,z), scaled.
        keep: bool, broadcastable to `score`.
        weight: (b,m).
        sees: bool (q,z) for each of the m masks.
        combine: see `RoutingOptions`.
    """
    if combine == "mixture":
        total = torch.zeros_like(score)
        for m, mask in enumerate(sees):
            hidden = score.masked_fill(~(mask & keep), -1e9)
            total = total + weight[:, m, None, None, None] * torch.softmax(hidden, dim=-1)
        return total
    mixed = sum(weight[:, m, None, None, None] * mask for m, mask in enumerate(sees))
    if combine == "hadamard":
        return torch.softmax((score * mixed).masked_fill(~keep, -1e9), dim=-1)
    log = torch.log(mixed.masked_fill(mixed == 0, 1))  # no infinities: their gradients are nan
    return torch.softmax((score + log).masked_fill(~(keep & (mixed > 0)), -1e9), dim=-1)


def bands(count: int, words: int, orders: tuple[int, ...], cross_modal: str) -> list[np.ndarray]:
    """Masks over `count` queries, then `words`, one entry at a time."""
    found = []
    for order in orders:
        mask = np.ones((count + words, count + words), bool)
        for i, j in np.ndindex(*mask.shape):
            across = (i < count) != (j < count)
            if order:
                mask[i, j] = cross_modal == "full" if across else abs(i - j) <= order
        found.append(mask)
    return found


class Video:
    """The video model in torch; `leaf` holds what is new in it, by our paths, ready for grads."""

    def __init__(
        self, qformer: QFormer, params: Any, double: bool = False, vision_width: int = VISION_WIDTH
    ) -> None:
        self.torch = torch = pytest.importorskip("torch")
        self.dtype = torch.float64 if double else torch.float32
        self.qformer, self.options, self.routing = qformer, qformer.options, qformer.routing
        self.model = hf_model(qformer, params, vision_width).to(self.dtype)
        self.leaf = {
            path: torch.tensor(array, dtype=self.dtype, requires_grad=True)
            for path, array in named(params).items()
            if path == "queries" or any(part in path for part in NEW)
        }

    def __call__(self, frames: Any, ids_bl: Any, keep_bl: Any, example_b: Any) -> Any:
        """Tokens (b,q,d) or (b,tq,d); `frames` may be a tensor that wants a gradient."""
        torch, options = self.torch, self.options
        frames = torch.as_tensor(frames).to(self.dtype)
        self.rows, self.frames, self.queries = *frames.shape[:2], options.num_queries
        place = self.leaf["frame_position"][: self.frames, None]
        query = (self.leaf["queries"] + self.leaf["query_position"])[None] + place
        x, keep = query.repeat(self.rows, 1, 1), torch.ones(self.rows, self.queries).bool()
        if ids_bl is not None:
            table = self.model.embeddings
            word = table.word_embeddings(torch.tensor(ids_bl).long())
            word = word + table.position_embeddings.weight[None, : ids_bl.shape[1]]
            x = torch.cat([x, word.repeat_interleave(self.frames, dim=0)], dim=1)
            keep = torch.cat([keep, torch.tensor(keep_bl)], dim=1)
            x = table.dropout(table.layernorm(x))
        else:
            x = self.model.dropout(self.model.layernorm(x))
        self.keep = keep.repeat_interleave(self.frames, dim=0)
        patches = frames.reshape(-1, *frames.shape[2:])
        for i in range(options.num_layers):
            x = self.layer(i, x, patches)
        x = x[:, : self.queries].reshape(self.rows, self.frames, self.queries, -1)
        if options.aggregate == "concat":
            return x.flatten(1, 2)
        kinds = {"mean": lambda: x.mean(1), "max": lambda: x.amax(1), "last": lambda: x[:, -1]}
        return kinds[options.aggregate]()

    def layer(self, i: int, x: Any, patches: Any) -> Any:
        torch, options, routing = self.torch, self.options, self.routing
        layer, queries = self.model.encoder.layer[i], self.queries
        count = routing.num_masks(i, options.num_layers)
        masks = bands(queries, x.shape[1] - queries, routing.orders[:count], routing.cross_modal)
        pooled = x[:, :queries].mean(1)
        if routing.pool == "all":
            pooled = (x * self.keep[..., None]).sum(1) / self.keep.sum(1, keepdim=True)
        x = self.attend(i, "attention", "space", x, None, self.keep,
                        self.route(i, "space", pooled, count), masks)  # fmt: skip

        def over_time(x: Any) -> Any:
            if not options.temporal:
                return x
            passing = queries if options.temporal_tokens == "query" else x.shape[1]
            z = x[:, :passing].reshape(self.rows, self.frames, passing, -1).transpose(1, 2)
            z = z.flatten(0, 1)
            routed = count if routing.temporal else 1
            weight = self.route(i, "time", z.mean(1), routed)
            moved = self.attend(
                i,
                "attention",
                "time",
                z,
                None,
                torch.ones(z.shape[:2]).bool(),
                weight,
                bands(self.frames, 0, routing.orders[:routed], ""),
            )
            if options.temporal_gate == "zero":
                moved = z + torch.tanh(self.leaf[f"layer_{i}/time_gate"]) * (moved - z)
            moved = moved.reshape(self.rows, passing, self.frames, -1).transpose(1, 2).flatten(0, 1)
            return torch.cat([moved, x[:, passing:]], dim=1)

        def to_patches(x: Any) -> Any:
            if i % options.cross_every:
                return x
            every = torch.ones(patches.shape[:2]).bool()
            query = self.attend(i, "cross", "cross", x[:, :queries], patches, every, None, [])
            return torch.cat([query, x[:, queries:]], dim=1)

        steps = (over_time, to_patches) if options.order == "s-t-c" else (to_patches, over_time)
        for step in steps:
            x = step(x)
        query = layer.feed_forward_chunk_query(x[:, :queries])
        if x.shape[1] == queries:
            return query
        return torch.cat([query, layer.feed_forward_chunk(x[:, queries:])], dim=1)

    def route(self, i: int, use: str, pooled: Any, count: int) -> Any:
        """Weights of the masks, (b,m); None without a choice."""
        if count == 1:
            return None
        at, torch = f"layer_{i}/router_{use}", self.torch
        hidden = torch.relu(pooled @ self.leaf[f"{at}/inner/kernel"])
        logits = hidden @ self.leaf[f"{at}/outer/kernel"] + self.leaf[f"{at}/outer/bias"]
        if self.routing.routing == "hard":
            return torch.nn.functional.one_hot(logits.argmax(-1), count).to(self.dtype)
        return torch.softmax(logits, dim=-1) if self.routing.norm == "softmax" else logits

    def changed(self, i: int, block: str, use: str, module: Any) -> dict[str, Any]:
        """Weights of query and value with the low-rank change of one use added."""
        found = {}
        for name in ("query", "value"):
            at = f"layer_{i}/{block}/{name}/lora_{use}"
            weight = getattr(module.attention, name).weight
            if f"{at}/down" in self.leaf:
                lora = self.qformer.lora
                change = self.leaf[f"{at}/down"] @ self.leaf[f"{at}/up"]
                weight = weight + lora.alpha / lora.rank * change.T
            found[f"attention.{name}.weight"] = weight
        return found

    def attend(self, i: int, block: str, use: str, x: Any, memory: Any, keep: Any, weight: Any,
               masks: list[np.ndarray]) -> Any:  # fmt: skip
        """One attention block of the model, residual and norm included."""
        torch, layer = self.torch, self.model.encoder.layer[i]
        module = layer.attention if block == "attention" else layer.crossattention
        changed = self.changed(i, block, use, module)
        if weight is None:
            bias = torch.zeros(keep.shape, dtype=self.dtype).masked_fill(~keep, -1e9)
            extra = {"attention_mask": bias[:, None, None]}
            if memory is not None:
                extra = {"encoder_hidden_states": memory}
            return torch.func.functional_call(module, changed, (x,), extra)
        own = module.attention

        def heads(y: Any) -> Any:
            return y.unflatten(-1, (self.options.num_heads, -1)).transpose(1, 2)

        linear = torch.nn.functional.linear
        query = heads(linear(x, changed["attention.query.weight"], own.query.bias))
        value = heads(linear(x, changed["attention.value.weight"], own.value.bias))
        score = query @ heads(own.key(x)).transpose(-1, -2) / query.shape[-1] ** 0.5
        sees = [torch.tensor(mask) for mask in masks]
        probs = routed_probs(torch, score, keep[:, None, None], weight, sees, self.routing.combine)
        return module.output((probs @ value).transpose(1, 2).flatten(2), x)

    def grads(self) -> dict[str, np.ndarray]:
        """After `backward`: the gradients of every parameter, by our paths; none is zero."""

        def array(tensor: Any) -> np.ndarray:
            grad = tensor.grad
            return np.zeros(tensor.shape, np.float32) if grad is None else grad.numpy()

        state = {f"qformer.{n}": array(p) for n, p in self.model.named_parameters()}
        state["query_tokens"] = array(self.leaf["queries"])[None]
        frozen = named(read_qformer(state, self.options))
        return {**frozen, **{path: array(leaf) for path, leaf in self.leaf.items()}}
