"""VC-CSA on CSMV: the published setting and everything that is compared with it.

    python -m jaxvsa.train --config configs/vccsa.py                                  (demo)
    python -m jaxvsa.train --config configs/vccsa.py:paper --config.data.root=data/csmv-i3d

Sources: "paper" is VC-CSA (NeurIPS 2024 D&B, arXiv 2407.06115), "supplement" its supplement,
"code" its published code (the values its training script really uses). A variant is a function
from the paper's setting to a changed copy, named by what it changes.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict


def paper() -> ConfigDict:
    """The best row of the supplement's Table 1, on I3D features and RoBERTa-base."""
    return ConfigDict(
        {
            "system": "vccsa",
            "seed": 3407,  # code
            "init_from": "",  # a run whose best parameters start this one
            "profile": "",  # FIRST:LAST, as 10:20, traces these updates into RUN/profile
            "data": {
                "root": "",  # a folder written by `python -m jaxvsa.prepare`; "demo" = synthetic
                "protocol": "official",  # or by_video: no video in two splits
                "text_len": 512,  # code
                "text_pad": "one",  # "max": all 512 of them, the published dropout statistics
                "shapes": 12,  # most padded shapes of the batches, each one compilation
                "resident": "auto",  # features on the device if they fit; "no": on the host
                "group": "none",  # code: uniform draws; "length", "video": faster, other sampling
                "window": 32,  # batches that are grouped together
                "vocab_size": 8192,  # of the byte-level BPE, where weights.text is empty
            },
            "weights": {
                "text": "",  # Hugging Face folder of RoBERTa-base (paper, section 4)
                "freeze_text": False,  # code: full fine-tuning
            },
            "model": {
                "variant": "both",
                "visual_length": 180,  # code, I3D and R(2+1)D: 3 rows a second
                "visual_width": 768,  # code
                "num_scales": 4,  # supplement, Table 1
                "consensus": {
                    "width": 512,  # code
                    "num_heads": 8,  # code
                    "num_layers": 1,  # supplement, Table 1
                    "num_tokens": 1,  # supplement, Table 1
                    "masked": True,  # code
                },
                "grounding_heads": 16,  # code
                "aspect_width": 768,  # code
                "final_heads": 4,  # code
                "dropout": 0.2,  # code (its --dropout_r is ignored)
                "padding": {  # all False: the published function
                    "mask_frames": False,
                    "mask_grounding": False,
                    "stop_cell": False,
                    "mask_gate": False,
                    "mask_pool": False,
                },
                "text": {  # RoBERTa-base; replaced by config.json of weights.text
                    "kind": "roberta",
                    "width": 768,
                    "num_layers": 12,
                    "num_heads": 12,
                    "mlp_width": 3072,
                    "max_positions": 514,
                    "num_types": 1,
                    "norm_eps": 1e-5,
                    "dropout": 0.1,
                    "attention_dropout": 0.1,
                },
                "precision": {"param": "float32", "compute": "float32"},  # code
            },
            "loss": {
                "kind": "focal",  # code
                "gamma": 2.0,  # code
                "class_weight": "uniform",  # code: 1 / number of classes
                "logit_adjustment": 0.0,
            },
            "optim": {
                "lr": 5e-5,  # code, training script
                "beta1": 0.9,  # code
                "beta2": 0.999,  # code
                "eps": 1e-8,  # code
                "eps_rule": "hf",  # code: AdamW of transformers
                "weight_decay": 0.0,  # code
                "decay": "kernels",
                "warmup": 0.1,  # code
                "schedule": "linear",  # code
                "clip_norm": 0.0,  # code: no clipping
                "part_lr": {"text": 1.0, "heads": 1.0, "fusion": 1.0},
            },
            "train": {
                "steps": 0,
                "epochs": 120.0,  # code
                "batch_size": 16,  # code, training script
                "accumulate": 1,
                "eval_batch_size": 128,
                "eval_every": 0,  # code: every epoch
                "save_every": 0,
                "log_every": 50,
                "select_on": "dev/all/micro_f1_sum",  # code: opinion + emotion micro-F1
                "patience": 0,  # code: no early stop
                "nonfinite": "stop",
                "max_skipped": 10,
                "tensorboard": False,
                "wandb": "",
            },
            "mesh": {"data": -1, "fsdp": 1, "tensor": 1, "step": "jit"},
        }
    )


def changed(base: Callable[[], ConfigDict], **sections: Mapping[str, Any]) -> ConfigDict:
    """A copy of `base()` with some values replaced; a key that does not exist is an error."""
    config = base()
    for section, values in sections.items():
        merged = ConfigDict({section: values}) if isinstance(values, Mapping) else {section: values}
        config.lock().update(merged)
    return config


def demo() -> ConfigDict:
    """Minutes on two CPU cores: a small model on the synthetic corpus."""
    return changed(
        paper,
        data={
            "root": "demo",
            "text_len": 48,
            "shapes": 2,  # a third costs more to compile than its padding
            "vocab_size": 512,
        },
        model={
            "visual_length": 24,
            "visual_width": 64,
            "num_scales": 2,
            "consensus": {"width": 64, "num_heads": 4},
            "grounding_heads": 4,
            "aspect_width": 64,
            "dropout": 0.1,
            "text": {
                "width": 64,
                "num_layers": 2,
                "num_heads": 4,
                "mlp_width": 128,
                "max_positions": 50,
                "dropout": 0.0,
                "attention_dropout": 0.0,
            },
        },
        loss={"kind": "cross_entropy"},
        optim={"lr": 1e-3, "weight_decay": 0.01, "clip_norm": 1.0},
        train={"epochs": 8.0, "batch_size": 32, "eval_batch_size": 256},
    )


def tiny() -> ConfigDict:
    """Tests only: every part, at the smallest size that can be wrong in every axis."""
    return changed(
        demo,
        data={"text_len": 24, "shapes": 2, "vocab_size": 320},
        model={
            "visual_length": 12,
            "visual_width": 12,
            "num_scales": 2,
            "consensus": {"width": 8, "num_heads": 2},
            "grounding_heads": 2,
            "aspect_width": 6,
            "text": {
                "width": 16,
                "num_layers": 1,
                "num_heads": 2,
                "mlp_width": 20,
                "max_positions": 26,
                "dropout": 0.1,
                "attention_dropout": 0.1,
            },
        },
        train={"steps": 6, "batch_size": 8, "eval_batch_size": 16, "log_every": 2},
    )


def consensus(scales: int, layers: int, tokens: int) -> ConfigDict:
    """One row of the supplement's Table 1."""
    return changed(
        paper,
        model={
            "num_scales": scales,
            "consensus": {"num_layers": layers, "num_tokens": tokens},
        },
    )


VARIANTS: dict[str, Callable[[], ConfigDict]] = {
    "demo": demo,
    "demo_text": functools.partial(changed, demo, model={"variant": "text"}),
    "demo_video": functools.partial(changed, demo, model={"variant": "video"}),
    "tiny": tiny,
    "paper": paper,
    "r2plus1d": paper,  # features of width 512, padded to the same 180 rows (code)
    "videomaev2": functools.partial(  # 12 rows a second (code)
        changed,
        paper,
        model={"visual_length": 720},
    ),
    "text": functools.partial(changed, paper, model={"variant": "text"}),
    "video": functools.partial(changed, paper, model={"variant": "video"}),
    "no_consensus_mask": functools.partial(changed, paper, model={"consensus": {"masked": False}}),
    "by_video": functools.partial(changed, paper, data={"protocol": "by_video"}),
    # Supplement, Table 1: temporal scales, then consensus layers, then consensus tokens.
    "scales_2": functools.partial(consensus, 2, 1, 1),
    "scales_3": functools.partial(consensus, 3, 1, 1),
    "scales_4": functools.partial(consensus, 4, 1, 1),
    "scales_5": functools.partial(consensus, 5, 1, 1),
    "scales_6": functools.partial(consensus, 6, 1, 1),
    "tokens_2": functools.partial(consensus, 4, 1, 2),
    "tokens_3": functools.partial(consensus, 4, 1, 3),
    "layers_2": functools.partial(consensus, 4, 2, 1),
    "layers_3": functools.partial(consensus, 4, 3, 1),
}


def get_config(variant: str = "demo") -> ConfigDict:
    """The configuration of a variant, a key of `VARIANTS`."""
    return VARIANTS[variant]()
