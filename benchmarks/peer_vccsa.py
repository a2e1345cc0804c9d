"""VC-CSA in PyTorch with the names of the published state dict: the peer of parity and speed.

Written from the description of the method, not from its code. It computes what the published
code computes and reduces nothing: full attention over all rows, four scales one after another,
every projection, all padding; only the waste that changes no number (attention masks rebuilt from
random draws, prints, host synchronisation) is left out. Needs torch and transformers.

    model = VCCSA(model_settings, RobertaConfig(...))
    model.load_state_dict(published, strict=True)
    outputs = model(batch)                  # all intermediates by name
    total = model.losses(outputs, batch)["total_loss"]

Source: VC-CSA, section 4 and supplement; layouts and names of the published state dict.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import RobertaConfig, RobertaModel

TASKS = ("opinion", "emotion")


class Consensus(nn.Module):
    """One attention layer over frames, the consensus token and words of one scale."""

    def __init__(self, model: Mapping[str, Any]) -> None:
        super().__init__()
        width = model["consensus_Transformer_fdim"]
        self.masked = model["consensus_mask"]
        self.visualLinear = nn.Linear(model["visualcnn_dim"], width)
        self.textLinear = nn.Linear(model["text_dim"], width)
        self.transformer = nn.MultiheadAttention(
            width, model["consensus_Transformer_head"], model["dropout"], batch_first=True
        )

    def forward(
        self, video_btd: Tensor, text_blu: Tensor, token: Tensor, pad_bt: Tensor, pad_bl: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The token's output (b,w) and its attention row, mean over heads (b,z); pads are True."""
        batch, frames = pad_bt.shape
        joint_bzw = torch.cat(
            [
                self.visualLinear(video_btd).relu(),
                token.expand(batch, 1, -1),
                self.textLinear(text_blu).relu(),
            ],
            dim=1,
        )
        pad_bz = torch.cat([pad_bt, pad_bt.new_zeros(batch, 1), pad_bl], dim=1)
        hidden = None
        if self.masked:
            hidden = pad_bz.new_zeros(pad_bz.shape[1], pad_bz.shape[1])
            hidden[:frames, frames + 1 :] = True
            hidden[frames + 1 :, :frames] = True
        seen_bzw, rows_bzz = self.transformer(
            joint_bzw, joint_bzw, joint_bzw, key_padding_mask=pad_bz, attn_mask=hidden
        )
        return seen_bzw[:, frames], rows_bzz[:, frames]


class ScaleAttention(nn.Module):
    """Every word attends over the scales; logits unscaled, values unprojected."""

    def __init__(self, model: Mapping[str, Any]) -> None:
        super().__init__()
        self.ffn_text = nn.Linear(model["text_dim"], model["vtalign_ground_dim"])
        self.ffn_visual = nn.Linear(model["visualcnn_dim"], model["vtalign_ground_dim"])

    def forward(self, text_blu: Tensor, ground_bsd: Tensor) -> tuple[Tensor, Tensor]:
        """The mixed scales (b,l,d) and the weights (b,l,s)."""
        logits_bls = self.ffn_text(text_blu) @ self.ffn_visual(ground_bsd).mT
        weight_bls = logits_bls.softmax(-1)
        return weight_bls @ ground_bsd, weight_bls


class FocalLoss(nn.Module):
    """Focal loss on probabilities, gamma 2, one fixed weight a class."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((num_classes,), 1 / num_classes), requires_grad=False)

    def forward(self, score_bc: Tensor, label_bc: Tensor) -> Tensor:
        """Mean over the batch; `label_bc` is one-hot."""
        surprise_bc = -torch.log(score_bc + 1e-7) + 1e-7
        return (self.weight * (1 - score_bc) ** 2 * label_bc * surprise_bc).sum(-1).mean()


class VCCSA(nn.Module):
    """The whole model. `model` holds the published settings, `roberta` those of the encoder."""

    def __init__(self, model: Mapping[str, Any], roberta: RobertaConfig) -> None:
        super().__init__()
        frame, width, text = model["visualcnn_dim"], model["consensus_Transformer_fdim"], "text_dim"
        scales, heads = range(model["multiview_num"]), model["groundAttention_head"]
        encoder = RobertaModel._from_config(roberta, attn_implementation="eager")
        self.text_encoder = nn.ModuleDict({"text_encoder": encoder})
        projection = nn.Conv1d(model["visual_dim"], model["visual_out_dim"], 1)
        self.visual_encoder = nn.ModuleDict({"linear": nn.ModuleDict({"conv1d": projection})})
        self.stack_cnn = nn.ModuleList(
            nn.ModuleDict({"conv": nn.Conv1d(frame, frame, 3, padding=1)}) for _ in scales
        )
        self.consensus_token = nn.Parameter(torch.rand(1, width))
        self.stack_Consensus_Transformer_inview = nn.ModuleList(Consensus(model) for _ in scales)
        self.grounding_Attention = nn.MultiheadAttention(
            width, heads, model["dropout"], kdim=frame, vdim=frame, batch_first=True
        )
        self.ground_lstm = nn.LSTM(heads, model["visual_length"], batch_first=True)
        self.multiview_attention_fusion = ScaleAttention(model)
        self.fusion_linear = nn.Linear(model[text] + frame, model[text])
        self.text_transformer = nn.MultiheadAttention(
            model[text], model["final_Transformer_head"], model["dropout"], batch_first=True
        )
        self.dropout = nn.Dropout(model["dropout"])
        for task in TASKS:
            head = nn.Linear(model[text], model[f"{task}_num"])
            setattr(self, f"{task}_classifier_head", nn.ModuleDict({"classLinear": head}))
            setattr(self, f"{task}_loss", FocalLoss(model[f"{task}_num"]))

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All intermediates by name; `batch` has video_feat, input_ids and their two masks."""
        ids_bl, mask_bl = batch["input_ids"], batch["attention_mask"]
        pad_bl, pad_bt = mask_bl == 0, batch["video_feat_mask"] == 0
        text_blu = self.text_encoder["text_encoder"](ids_bl, mask_bl).last_hidden_state
        current_bdt = self.visual_encoder["linear"]["conv1d"](batch["video_feat"].mT)
        out = {"visual_encoded": current_bdt.mT, "text_token_features": text_blu}
        levels = []
        layers = zip(self.stack_cnn, self.stack_Consensus_Transformer_inview, strict=True)
        for cnn, consensus in layers:
            current_bdt = cnn["conv"](current_bdt).relu()
            found = consensus(current_bdt.mT, text_blu, self.consensus_token, pad_bt, pad_bl)
            levels.append(self.ground(current_bdt.mT, *found))
        out |= {name: torch.stack([level[name] for level in levels], 1) for name in levels[0]}
        fused_bld, weight_bls = self.multiview_attention_fusion(text_blu, out["grounding_features"])
        shown_bld = fused_bld * mask_bl[..., None]
        pre_blu = self.fusion_linear(torch.cat([text_blu, shown_bld], -1)).relu()
        mixed_blu, _ = self.text_transformer(pre_blu, pre_blu, pre_blu, key_padding_mask=pad_bl)
        final_bu = mixed_blu.max(1).values
        out |= {
            "multiview_fused": fused_bld,
            "multiview_attention": weight_bls,
            "multiview_fused_masked": shown_bld,
            "text_fusion_pre": pre_blu,
            "text_fusion": mixed_blu,
            "final_feature": final_bu,
        }
        final_bu = self.dropout(final_bu)
        for task in TASKS:
            head = getattr(self, f"{task}_classifier_head")["classLinear"]
            out[f"{task}_predict"] = head(final_bu).softmax(-1)
        return out

    def ground(self, frames_btd: Tensor, token_bw: Tensor, rows_bz: Tensor) -> dict[str, Tensor]:
        """Weight of every frame of one scale and the weighted sum, by golden name."""
        _, weight_bhqt = self.grounding_Attention(
            token_bw[:, None], frames_btd, frames_btd, average_attn_weights=False
        )
        weight_bht = weight_bhqt[:, :, 0]
        _, (_, cell_1bt) = self.ground_lstm(weight_bht.mT)
        score_bt = cell_1bt[0].relu()
        return {
            "cnn_features": frames_btd,
            "consensus_features": token_bw,
            "consensus_attention_rows": rows_bz,
            "grounding_attention": weight_bht,
            "lstm_cell_final": cell_1bt[0],
            "cg_score": score_bt,
            "grounding_features": (score_bt[..., None] * frames_btd).sum(1),
        }

    def losses(self, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> dict:
        """Both focal losses and their sum; labels `<task>_label` (b,c) are one-hot."""
        out = {
            f"{task}_loss": getattr(self, f"{task}_loss")(
                outputs[f"{task}_predict"], batch[f"{task}_label"]
            )
            for task in TASKS
        }
        return out | {"total_loss": out["opinion_loss"] + out["emotion_loss"]}


class HFAdamW(torch.optim.Optimizer):
    """AdamW as transformers had it: eps joins sqrt(v) before the bias correction; decay last."""

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(
            params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for param in (p for p in group["params"] if p.grad is not None):
                state = self.state[param]
                if not state:
                    state |= {"step": 0, "m": torch.zeros_like(param), "v": torch.zeros_like(param)}
                state["step"] += 1
                state["m"].lerp_(param.grad, 1 - beta1)
                state["v"].mul_(beta2).addcmul_(param.grad, param.grad, value=1 - beta2)
                unbias = (1 - beta2 ** state["step"]) ** 0.5 / (1 - beta1 ** state["step"])
                denominator = state["v"].sqrt().add_(group["eps"])
                param.addcdiv_(state["m"], denominator, value=-group["lr"] * unbias)
                param.mul_(1 - group["lr"] * group["weight_decay"])
        return loss


def make_optimizer(
    model: nn.Module, rule: str, lr: float, **settings: Any
) -> torch.optim.Optimizer:
    """AdamW over all trainable parameters; `rule` is the place of eps, "hf" or "torch".

    Decay is 0 unless given, as published.
    """
    if rule not in ("hf", "torch"):
        raise ValueError(f"unknown rule '{rule}'; known: hf, torch")
    make = HFAdamW if rule == "hf" else torch.optim.AdamW
    learn = [param for param in model.parameters() if param.requires_grad]
    return make(learn, lr=lr, **({"weight_decay": 0.0} | settings))


def learning_rate(update: int, base: float, num_updates: int, warmup: float) -> float:
    """Rate of one update (from 0): linear up over int(warmup * n) updates, then linearly to 0."""
    rising = int(warmup * num_updates)
    if update < rising:
        return base * update / max(1, rising)
    return base * max(0.0, (num_updates - update) / max(1, num_updates - rising))


def train_step(
    model: VCCSA, optimizer: torch.optim.Optimizer, batch: Mapping[str, Tensor], lr: float
) -> Tensor:
    """One update at rate `lr`; returns the total loss before it, still on its device."""
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.zero_grad(set_to_none=True)
    loss = model.losses(model(batch), batch)["total_loss"]
    loss.backward()
    optimizer.step()
    return loss.detach()
