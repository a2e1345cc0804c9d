"""The PyTorch side of a step of CleveReward; our own plain module, written from the specification.

Needs the extra `parity`. The features lie in memory as float32 tensors. "eager" and "compile" draw
row numbers with `torch.randperm` and index whole batches; "loader_N" is a map-style data set read
pair by pair through a `DataLoader` with N workers.

Contrastive term: only its anchors are brought together, so the square has their size.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.reward_case import Arrays

MAX_SCALE = 100.0
COLUMNS = ("answer", "weight", "source", "aligned", "group", "question")


class Towers(nn.Module):
    """Two projections and a learned scale."""

    def __init__(self, params: dict[str, np.ndarray], contrastive: float) -> None:
        """`params` by our paths; `contrastive` is the factor of its term, 0 without."""
        super().__init__()
        self.video, self.text = (
            linear(params[f"{name}/kernel"], params[f"{name}/bias"]) for name in ("video", "text")
        )
        self.logit_scale = nn.Parameter(torch.tensor(float(params["logit_scale"])))
        self.contrastive = contrastive

    def forward(
        self, frames: Any, words: Any, answer: Any, weight: Any, question: Any, rows: Any
    ) -> Any:
        """Loss of a batch: (2b,f), (b,e), (b,), (b,), (b,), places of the anchors."""
        video = F.normalize(self.video(frames), dim=-1, eps=1e-6).unflatten(0, (-1, 2))
        text = F.normalize(self.text(words), dim=-1, eps=1e-6)
        scale = self.logit_scale.clamp(0, math.log(MAX_SCALE)).exp()
        reward = scale * (video @ text.unsqueeze(-1)).squeeze(-1)
        value = F.softplus(-answer * (reward[:, 0] - reward[:, 1]))
        loss = torch.dot(weight, value) / weight.sum().clamp(min=1e-12)
        if not self.contrastive:
            return loss
        chosen = video[rows, (answer[rows] < 0).long()]
        logits = (scale * chosen) @ text[rows].T
        asked = question[rows]
        same = asked[:, None] == asked[None]
        same.diagonal().zero_()
        logits = logits.masked_fill_(same, -torch.inf)
        lines = torch.logsumexp(logits, 1) + torch.logsumexp(logits, 0)
        clip = (lines / 2 - logits.diagonal()).mean()
        return loss + self.contrastive * clip


def linear(kernel: np.ndarray, bias: np.ndarray) -> nn.Linear:
    """A layer with these weights, ours are inputs by outputs."""
    layer = nn.Linear(*kernel.shape)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(kernel.T.copy()))
        layer.bias.copy_(torch.from_numpy(bias.copy()))
    return layer


class Draws:
    """Batches of row numbers without end; a source has n ** power of an epoch."""

    def __init__(self, source: Any, power: float, size: int) -> None:
        """`source` of every pair."""
        self.size, count = size, torch.bincount(source).double()
        share = count**power * (count > 0)
        self.shares = (share / share.sum() * len(source)).long().tolist()
        self.rows = [torch.nonzero(source == s)[:, 0] for s in range(len(count))]

    def __iter__(self) -> Iterator[Any]:
        while True:
            drawn = []
            for rows, share in zip(self.rows, self.shares, strict=True):
                rounds = -(-share // max(len(rows), 1))
                perms = [rows[torch.randperm(len(rows))] for _ in range(rounds)]
                drawn += [torch.cat(perms)[:share]] if perms else []
            epoch = torch.cat(drawn)
            batches = epoch[torch.randperm(len(epoch))].split(self.size)
            yield from batches[: max(len(epoch) // self.size, 1)]


class Items(torch.utils.data.Dataset):
    """One pair at a time."""

    def __init__(self, side: Theirs) -> None:
        """Shares the tensors of `side`."""
        self.side = side

    def __len__(self) -> int:
        return len(self.side.video)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        side = self.side
        columns = (side.columns[name][index] for name in COLUMNS)
        return side.videos[side.video[index]], side.texts[side.text[index]], *columns


class Theirs:
    """PyTorch's side."""

    def __init__(
        self,
        arrays: Arrays,
        params: dict[str, np.ndarray],
        setting: dict[str, Any],
        kind: str,
        device: str,
    ) -> None:
        """`setting`: "loss", "optim", "batch_size", "num_steps", "power", "aligned"."""
        self.device, self.setting, self.kind = device, setting, kind
        self.store = "cpu" if kind.startswith("loader") else device  # workers see no GPU
        columns = {name: torch.from_numpy(a) for name, a in arrays.columns.items()}
        self.videos, self.texts = (
            torch.from_numpy(array).to(self.store) for array in (arrays.videos_nf, arrays.texts_ne)
        )
        self.video = columns["video_bvt"][:, :, 0].long().to(self.store)
        self.text = columns["text_b"].long().to(self.store)
        answer = columns["answer_b"].float()
        aligned = torch.isin(columns["dimension_b"].long(), torch.tensor(setting["aligned"]))
        self.columns = {
            "answer": answer,
            "weight": torch.where(answer != 0, columns["weight_b"], 0.0),
            "source": columns["source_b"].long(),
            "aligned": aligned & (answer != 0),
            "group": columns["group_b"].long(),
            "question": columns["question_b"].long(),
        }
        self.columns = {name: column.to(self.store) for name, column in self.columns.items()}
        self.num_groups = int(columns["group_b"].max()) + 1
        self.model = Towers(params, setting["contrastive"]).to(device).train()
        self.forward = torch.compile(self.model) if kind == "compile" else self.model
        self.optimizer, self.schedule = self.make_optimizer(setting["optim"], setting["num_steps"])
        self.stream = iter(self.batches())
        self.waited = 0.0

    def make_optimizer(self, optim: dict[str, Any], num_steps: int) -> tuple[Any, Any]:
        """AdamW that decays kernels alone, and a cosine after a warm-up."""
        kernels = [self.model.video.weight, self.model.text.weight]
        rest = [self.model.video.bias, self.model.text.bias, self.model.logit_scale]
        groups = [
            {"params": kernels, "weight_decay": optim["weight_decay"]},
            {"params": rest, "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(
            groups, lr=optim["lr"], betas=(optim["beta1"], optim["beta2"]), eps=optim["eps"],
            fused=True,
        )  # fmt: skip
        rise = int(optim["warmup"] * num_steps)

        def factor(step: int) -> float:
            if step < rise:
                return step / max(rise, 1)
            left = min(max((num_steps - step) / max(num_steps - rise, 1), 0), 1)
            return 0.5 * (1 + math.cos(math.pi * (1 - left)))

        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)

    def batches(self) -> Iterator[tuple[Any, ...]]:
        """Arguments of `forward`, without end."""
        draws = Draws(self.columns["source"], self.setting["power"], self.setting["batch_size"])
        if not self.kind.startswith("loader"):
            return map(self.batch, draws)
        workers = int(self.kind.rpartition("_")[2])
        loader = torch.utils.data.DataLoader(
            Items(self), batch_sampler=_Lists(draws), num_workers=workers,
            persistent_workers=workers > 0, pin_memory=self.device == "cuda",
        )  # fmt: skip
        return map(self.collated, loader)

    def batch(self, index: Any) -> tuple[Any, ...]:
        """The pairs at these places."""
        index = index.to(self.store)
        frames = self.videos.index_select(0, self.video[index].view(-1))
        words = self.texts.index_select(0, self.text[index])
        found = (frames, words, *(self.columns[name][index] for name in COLUMNS))
        return self.arguments(*(x.to(self.device) for x in found))

    def collated(self, found: Any) -> tuple[Any, ...]:
        """What the loader gives."""
        frames, words, *columns = (x.to(self.device, non_blocking=True) for x in found)
        return self.arguments(frames.flatten(0, 1), words, *columns)

    def arguments(
        self, frames: Any, words: Any, answer: Any, weight: Any, source: Any, aligned: Any,
        group: Any, question: Any,
    ) -> tuple[Any, ...]:  # fmt: skip
        """Of `forward`: the first pair of each group among those that may is its anchor."""
        rows = torch.nonzero(aligned)[:, 0] if self.model.contrastive else group[:0]
        if self.model.contrastive:
            key = group[rows]
            first = torch.full((self.num_groups,), len(group), device=group.device)
            first.scatter_reduce_(0, key, rows, "amin")
            rows = rows[first[key] == rows]
            if self.kind == "compile":
                torch._dynamo.mark_dynamic(rows, 0)
        return frames, words, answer, weight, question, rows

    def update(self, arguments: tuple[Any, ...]) -> float:
        """One update; the loss before it."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.forward(*arguments)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.setting["optim"]["clip_norm"])
        self.optimizer.step()
        self.schedule.step()
        return loss.item()

    def losses(self, indices: Iterable[np.ndarray]) -> list[float]:
        """Of one update for each of these batches."""
        return [self.update(self.batch(torch.from_numpy(index))) for index in indices]

    def run(self, updates: int) -> None:
        """Updates on batches of its own."""
        self.waited = 0.0
        for _ in range(updates):
            begin = time.perf_counter()
            arguments = next(self.stream)
            self.waited += time.perf_counter() - begin
            self.update(arguments)
        if self.device == "cuda":
            torch.cuda.synchronize()


class _Lists:
    """Draws as a batch sampler."""

    def __init__(self, draws: Draws) -> None:
        self.draws = draws

    def __iter__(self) -> Iterator[list[int]]:
        return (index.tolist() for index in self.draws)
