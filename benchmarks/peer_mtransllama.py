"""The PyTorch side: MTransLLAMA put together from the modules of transformers.

The paper has published no code; this is our own plain module. Attention, networks and norms are
those of `InstructBlipQFormerModel`, the language model is `LlamaForCausalLM`; between them stands
what the paper adds, in the setting of `configs/mtransllama.py:mustard`: Eq. 6 to 12, Hadamard
routing, words that bypass attention over frames. Low-rank changes stay apart from their frozen
kernels, as in PEFT: merged, their gradients would need those of whole kernels. Needs the extra
`parity`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import (
    DynamicCache,
    InstructBlipQFormerConfig,
    InstructBlipQFormerModel,
    LlamaConfig,
    LlamaForCausalLM,
    StaticCache,
)

from benchmarks import mtransllama_case
from jaxvsa.core.trees import named
from jaxvsa.interop import blip, llama
from jaxvsa.interop.instructblip import projection_names
from jaxvsa.systems.mtransllama.model import ModelOptions

NEW = ("lora_", "router_", "_position")


def tensor(array: Any) -> torch.Tensor:
    """A copy of an array; bfloat16 by its bits."""
    array = np.ascontiguousarray(array)
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(array.copy())


def load(model: nn.Module, tensors: Mapping[str, Any], dtype: Any) -> nn.Module:
    """A frozen model with these weights, in evaluation mode: no dropout."""
    missing, over = model.load_state_dict({k: tensor(v) for k, v in tensors.items()}, strict=False)
    assert not missing and not over, (missing, over)
    return model.to(dtype).requires_grad_(False).eval()


class VideoQFormer(nn.Module):
    """`layers.qformer.QFormer`; what learns is in `new`, by our paths."""

    def __init__(self, options: ModelOptions, params: Any, words_size: int) -> None:
        """Frozen weights from our tree."""
        super().__init__()
        self.options, self.sizes = options, options.qformer
        sizes = options.qformer
        tensors = blip.to_names(params, sizes, prefix="")
        self.register_buffer("queries", tensor(tensors.pop("query_tokens"))[0])
        config = InstructBlipQFormerConfig(
            vocab_size=words_size, hidden_size=sizes.width, num_hidden_layers=sizes.num_layers,
            num_attention_heads=sizes.num_heads, intermediate_size=sizes.mlp_width,
            max_position_embeddings=sizes.max_positions, layer_norm_eps=sizes.norm_eps,
            encoder_hidden_size=options.vision.width, cross_attention_frequency=sizes.cross_every,
            pad_token_id=0,
        )  # fmt: skip
        dtype = getattr(torch, options.precision.compute)
        self.model = load(InstructBlipQFormerModel(config), tensors, dtype)
        self.new = nn.ParameterDict(
            {
                path: nn.Parameter(tensor(np.asarray(leaf, np.float32)))
                for path, leaf in named(params).items()
                if any(part in path for part in NEW)
            }
        )

    def forward(self, patches: Any, ids: Any, keep: Any) -> Any:
        """(b,t,p,f), (b,l), bool (b,l) -> (b,q,d)."""
        rows, frames = patches.shape[:2]
        count = self.sizes.num_queries
        query = self.queries + self.new["query_position"]
        query = query[None] + self.new["frame_position"][:frames, None]
        query = query.to(patches.dtype).repeat(rows, 1, 1)
        table = self.model.embeddings
        word = table.word_embeddings(ids) + table.position_embeddings.weight[: ids.shape[1]]
        x = table.layernorm(torch.cat([query, word.repeat_interleave(frames, 0)], 1))
        keep = torch.cat([keep.new_ones(rows, count), keep], 1).repeat_interleave(frames, 0)
        bias = torch.zeros_like(keep, dtype=x.dtype)
        bias = bias.masked_fill(~keep, torch.finfo(x.dtype).min)[:, None, None]
        patches = patches.flatten(0, 1)
        for i in range(self.sizes.num_layers):
            x = self.layer(i, x, bias, patches, rows)
        return x[:, :count].unflatten(0, (rows, frames)).mean(1)

    def layer(self, i: int, x: Any, bias: Any, patches: Any, rows: int) -> Any:
        """Attention over space, time and patches, then both networks."""
        layer, count = self.model.encoder.layer[i], self.sizes.num_queries
        masks = self.options.routing.num_masks(i, self.sizes.num_layers)
        mixed = self.mixed(i, "space", x[:, :count].mean(1), masks, count, x.shape[1] - count)
        x = self.attend(layer.attention, f"layer_{i}/attention", "space", x, x, bias, mixed)
        z = x[:, :count].unflatten(0, (rows, -1)).transpose(1, 2).flatten(0, 1)
        mixed = self.mixed(i, "time", z.mean(1), masks, z.shape[1], 0)
        z = self.attend(layer.attention, f"layer_{i}/attention", "time", z, z, None, mixed)
        query = z.unflatten(0, (rows, count)).transpose(1, 2).flatten(0, 1)
        if i % self.sizes.cross_every == 0:
            query = self.attend(
                layer.crossattention, f"layer_{i}/cross", "cross", query, patches, None, None
            )
        query = layer.feed_forward_chunk_query(query)
        return torch.cat([query, layer.feed_forward_chunk(x[:, count:])], 1)

    def mixed(self, i: int, use: str, pooled: Any, masks: int, count: int, words: int) -> Any:
        """Weighted masks (b,1,z,z) of Eq. 11 and 12; None with one mask alone."""
        if masks == 1:
            return None
        at, new, device = f"layer_{i}/router_{use}", self.new, pooled.device
        hidden = torch.relu(pooled.float() @ new[f"{at}/inner/kernel"])
        logits = hidden @ new[f"{at}/outer/kernel"] + new[f"{at}/outer/bias"]
        place = torch.arange(count + words, device=device)
        far = (place[:, None] - place[None]).abs()
        across = (place[:, None] < count) ^ (place[None] < count)
        sees = [(far <= n) | across if n else far >= 0 for n in self.options.routing.orders[:masks]]
        weight = torch.softmax(logits, -1)
        return (weight @ torch.stack(sees).flatten(1).float()).view(-1, 1, *far.shape)

    def changed(self, module: nn.Module, at: str, use: str, x: Any) -> Any:
        """A frozen linear layer with the low-rank change of one use."""
        down, up = (self.new[f"{at}/lora_{use}/{part}"].to(x.dtype) for part in ("down", "up"))
        lora = self.options.lora
        return module(x) + (lora.alpha / lora.rank) * ((x @ down) @ up)

    def attend(
        self, block: nn.Module, at: str, use: str, x: Any, memory: Any, bias: Any, mixed: Any
    ) -> Any:
        """One attention block, residual and norm included."""
        own = block.attention

        def heads(y: Any) -> Any:
            return y.unflatten(-1, (self.sizes.num_heads, -1)).transpose(1, 2)

        query = heads(self.changed(own.query, f"{at}/query", use, x))
        key = heads(own.key(memory))
        value = heads(self.changed(own.value, f"{at}/value", use, memory))
        if mixed is None:
            out = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        else:
            score = (query @ key.transpose(-1, -2)).float() * query.shape[-1] ** -0.5 * mixed
            score = score if bias is None else score + bias
            out = torch.softmax(score, -1).to(value.dtype) @ value
        return block.output(out.transpose(1, 2).flatten(2), x)


class Peer(nn.Module):
    """Q-Former, projection and language model; without the latter, the Q-Former alone."""

    def __init__(self, case: mtransllama_case.Case, device: str) -> None:
        """The weights of `case`."""
        super().__init__()
        params, options = case.params(), case.options
        self.qformer = VideoQFormer(options, params["qformer"], case.words_size)
        dtype, sizes = getattr(torch, options.frozen.compute), options.decoder
        if case.vocab_size:
            config = LlamaConfig(
                vocab_size=case.vocab_size, hidden_size=sizes.width,
                intermediate_size=sizes.mlp_width, num_hidden_layers=sizes.num_layers,
                num_attention_heads=sizes.num_heads, num_key_value_heads=sizes.num_kv_heads,
                rms_norm_eps=sizes.norm_eps, tie_word_embeddings=False,
                max_position_embeddings=4096, pad_token_id=None, dtype=dtype,
            )  # fmt: skip
            with torch.device(device):
                model = LlamaForCausalLM(config)
            self.decoder = load(model, llama.to_names(params["decoder"]), dtype)
            projection = projection_names(params["project"])
            self.project = nn.Linear(options.qformer.width, sizes.width)
            names = {k.rpartition(".")[2]: v for k, v in projection.items()}
            load(self.project, names, dtype)
            if sizes.remat:
                self.decoder.gradient_checkpointing_enable()
                self.decoder.train()  # else it is not done; there is no dropout in it
        self.to(device)

    def forward(self, batch: Mapping[str, Any]) -> Any:
        """The loss of `Case.system`."""
        token = self.tokens(batch)
        if "target_bqd" in batch:
            return ((token.float() - batch["target_bqd"]) ** 2).mean()
        embed, answer = self.decoder.get_input_embeddings(), batch["answer_ba"]
        parts = [self.project(token), embed(batch["prompt_bn"]), embed(answer[:, :-1])]
        out = self.decoder.model(inputs_embeds=torch.cat(parts, 1), use_cache=False)
        logits = self.decoder.lm_head(out.last_hidden_state[:, -answer.shape[1] :]).float()
        return F.cross_entropy(logits.flatten(0, 1), answer.flatten())

    def tokens(self, batch: Mapping[str, Any]) -> Any:
        """What the Q-Former makes of a batch."""
        return self.qformer(batch["frames_btpf"], batch["ids_bl"], batch["keep_bl"])

    def begin(self, visual: Any, prompt: Any, cache: Any) -> Any:
        """Scores of the first token."""
        x = torch.cat([visual, self.decoder.get_input_embeddings()(prompt)], 1)
        return self.decoder(inputs_embeds=x, past_key_values=cache, use_cache=True,
                            logits_to_keep=1).logits[:, -1]  # fmt: skip

    def next(self, token: Any, cache: Any) -> Any:
        """Scores of the token after `token`."""
        out = self.decoder(input_ids=token[:, None], past_key_values=cache, use_cache=True)
        return out.logits[:, -1]


class Theirs:
    """One part of the comparison on the PyTorch side: `forward`, `step` or `generate`."""

    def __init__(self, case: mtransllama_case.Case, device: str, compiled: bool) -> None:
        """`compiled`: torch.compile, otherwise eager."""
        self.case, self.device = case, device
        self.model = Peer(case, device)
        batch = {**case.batch, **mtransllama_case.padded_words(case.batch)}
        if case.vocab_size:
            batch["visual_bqd"] = mtransllama_case.visual_tokens(case)
        self.batch = {
            name: (found.long() if found.dtype == torch.int32 else found).to(device)
            for name, found in ((name, tensor(array)) for name, array in batch.items())
        }
        self.compiled, wrap = compiled, torch.compile if compiled else lambda fn: fn
        # A part at a time runs in a process; what is not called is not compiled.
        self.loss, self.tokens = wrap(self.model), wrap(self.model.tokens)
        self.begin, self.next = wrap(self.model.begin), wrap(self.model.next)
        self.cache: Any = None
        optim = case.config["optim"]
        learn = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        self.learn, self.clip = list(learn.values()), optim["clip_norm"]
        groups = [
            {"params": [p for name, p in learn.items() if not name.endswith("bias")]},
            {"params": [p for name, p in learn.items() if name.endswith("bias")],
             "weight_decay": 0.0},
        ]  # fmt: skip
        self.optimizer = torch.optim.AdamW(
            groups, lr=optim["lr"], betas=(optim["beta1"], optim["beta2"]), eps=optim["eps"],
            weight_decay=optim["weight_decay"], fused=device != "cpu" or None,
        )  # fmt: skip

    def forward(self) -> np.ndarray:
        """Visual tokens."""
        with torch.inference_mode():
            return self.tokens(self.batch).float().cpu().numpy()

    def step(self) -> float:
        """One update; the loss before it."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(self.batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.learn, self.clip)
        self.optimizer.step()
        return loss.item()

    def generate(self) -> np.ndarray:
        """Greedy tokens behind fixed visual tokens and the prompt."""
        prompt, count = self.batch["prompt_bn"], mtransllama_case.NEW_TOKENS
        visual, found = self.batch["visual_bqd"], []
        with torch.inference_mode():
            cache = self.new_cache(visual.shape[1] + prompt.shape[1] + count)
            scores = self.begin(visual, prompt, cache)
            for _ in range(count - 1):
                found.append(scores.argmax(-1))
                scores = self.next(found[-1], cache)
            return torch.stack([*found, scores.argmax(-1)], 1).cpu().numpy()

    def new_cache(self, columns: int) -> Any:
        """Empty: one that grows, or for compiled programs one of a size that never changes."""
        config = self.model.decoder.config
        if not self.compiled:
            return DynamicCache(config=config)
        if self.cache is None:
            self.cache = StaticCache(config=config, max_cache_len=columns)
        self.cache.reset()
        return self.cache

    def learnable(self) -> int:
        """Values that learn."""
        return sum(parameter.numel() for parameter in self.learn)

    def peak_gib(self) -> float | None:
        """What PyTorch's allocator held at most on the device."""
        return torch.cuda.max_memory_allocated() / 2**30 if self.device == "cuda" else None
