"""MTransLLAMA on five data sets: the published setting and what is compared with it.

    python -m jaxvsa.train --config configs/mtransllama.py                            (demo)
    python -m jaxvsa.train --config configs/mtransllama.py:mustard \
        --config.data.root=data/mustard --config.weights.base=instructblip-vicuna-7b

Sources: "paper" is "Efficient Transfer From Image-Based Large Multimodal Models to Video Tasks"
(IEEE TMM 2025), "LAVIS" the published image model. What the paper does not say is "chosen". A
variant is a function from the paper's setting to a changed copy, named by what it changes.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict


def mustard() -> ConfigDict:
    """MUStARD with InstructBLIP-Vicuna-7B: Table III."""
    return ConfigDict(
        {
            "system": "mtransllama",
            "seed": 0,
            "init_from": "",  # a run whose best parameters start this one
            "profile": "",  # FIRST:LAST, as 10:20, traces these updates into RUN/profile
            "data": {
                "root": "",  # a folder written by `python -m jaxvsa.prepare`; "demo" = synthetic
                "protocol": "released5",  # all five folds; released5_0 is the first
                "llm_text": "question",  # paper, IV-E; "full": the dialogue, too
                "speakers": "named",  # "anonymous": Speaker 1, Speaker 2, ...
                "shapes": 8,  # most padded shapes of the batches, each one compilation
                "resident": "auto",  # clips on the device if they fit; "no": on the host
                "vocab_size": 8192,  # of the byte-level BPEs, where weights.base is empty
            },
            "weights": {
                "base": "",  # InstructBLIP or BLIP-2 as a Hugging Face folder, or a run
                "learn": "adapters",  # paper; "all": everything
                "positions": "both",  # chosen: e_t and e_s of Eq. 6 learn
            },
            "model": {
                "variant": "both",
                "num_frames": 8,  # paper, IV-B
                "short": "repeat",
                "max_prompt": 256,
                "max_words": 320,  # chosen: 163 of 690 prompts are longer than LAVIS' 128
                "long": "left",  # LAVIS: what was said first is dropped
                "max_answer": 32,
                "max_new": 32,
                "num_beams": 5,  # LAVIS; 1: greedy
                "length_penalty": 1.0,
                "vision": {  # EVA-CLIP-g of LAVIS; replaced by config.json of weights.base
                    "image_size": 224,
                    "patch_size": 14,
                    "width": 1408,
                    "num_layers": 39,
                    "num_heads": 16,
                    "mlp_width": 6144,
                    "norm_eps": 1e-6,
                },
                "qformer": {
                    "num_layers": 12,
                    "width": 768,
                    "num_heads": 12,
                    "mlp_width": 3072,
                    "num_queries": 32,
                    "max_positions": 512,
                    "cross_every": 2,
                    "norm_eps": 1e-12,
                    "max_frames": 8,
                    "temporal": True,
                    "temporal_gate": "none",  # paper
                    "order": "s-t-c",  # paper, Fig. 2
                    "temporal_tokens": "query",  # paper, Eq. 9
                    "dropout": 0.0,  # LAVIS 0.1; chosen, since what it disturbs is frozen
                    "aggregate": "mean",  # paper, Table VI: 32 tokens whatever t
                },
                "lora": {
                    "rank": 16,  # chosen, so that 2.45 of the published 2.5 million learn
                    "alpha": 32.0,
                    "sites": ("space", "time", "cross"),  # paper, III-C
                },
                "routing": {
                    "enabled": True,
                    "combine": "hadamard",  # paper, Eq. 11
                    "orders": (0, 1, 2, 3),
                    "schedule": "grow",  # paper: options increase with depth
                    "cross_modal": "full",
                    "temporal": True,  # paper
                    "pool": "query",
                    "hidden": 64,  # chosen; 0: routers that do not learn
                    "norm": "softmax",
                    "routing": "soft",
                    "tau": 1.0,
                    "tau_last": 0.1,
                    "tau_updates": 0,  # updates in which tau falls so far; 0: it stays
                    "first_bias": 3.0,
                },
                "decoder": {  # Vicuna-7B v1.1; replaced by config.json of weights.base
                    "width": 4096,
                    "num_layers": 32,
                    "num_heads": 32,
                    "num_kv_heads": 32,
                    "mlp_width": 11008,
                    "norm_eps": 1e-6,
                    "rope_theta": 10000.0,
                    "rope_scaling": {"factor": 1.0, "low": 1.0, "high": 4.0, "positions": 8192},
                    "tied": False,
                    "remat": True,
                },
                "precision": {"param": "float32", "compute": "float32"},
                "frozen": {"param": "bfloat16", "compute": "bfloat16"},
            },
            "loss": {},
            "beside": (),  # variants that are trained, too, and stand in the same table
            "optim": {
                "lr": 1e-4,  # paper
                "beta1": 0.9,  # paper
                "beta2": 0.95,  # paper
                "eps": 1e-8,  # chosen
                "eps_rule": "torch",
                "weight_decay": 0.05,  # paper
                "decay": "kernels",  # LAVIS: none on vectors
                "warmup": 0.0,
                "schedule": "constant",  # chosen
                "clip_norm": 1.0,  # chosen
                "part_lr": {"qformer": 1.0, "decoder": 1.0, "rest": 1.0},
            },
            "train": {
                "steps": 0,
                "epochs": 90.0,  # paper
                "batch_size": 4,  # paper
                "accumulate": 1,
                "eval_batch_size": 16,
                "eval_every": 0,
                "save_every": 0,
                "log_every": 50,
                "select_on": "",  # no dev split: the last step, never the best test epoch
                "patience": 0,
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


def short_clips() -> ConfigDict:
    """What the paper shares between the other data sets: windows of 4 frames, 25 epochs."""
    return changed(
        mustard,
        data={"protocol": "official"},
        model={"num_frames": 4},
        train={"epochs": 25.0, "batch_size": 2},
    )


TINY_MODEL: dict[str, Any] = {
    "num_frames": 4,
    "max_prompt": 32,
    "max_words": 32,
    "max_answer": 4,
    "max_new": 4,
    "num_beams": 1,
    "vision": {
        "image_size": 16,
        "patch_size": 4,
        "width": 32,
        "num_layers": 2,
        "num_heads": 4,
        "mlp_width": 64,
    },
    "qformer": {
        "num_layers": 2,
        "width": 48,
        "num_heads": 4,
        "mlp_width": 96,
        "num_queries": 4,
        "max_positions": 64,
    },
    "lora": {"rank": 8, "alpha": 16.0},
    "routing": {"hidden": 16},
    "decoder": {
        "width": 48,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "mlp_width": 96,
        "remat": False,
    },
    "frozen": {"param": "float32", "compute": "float32"},
}


def demo() -> ConfigDict:
    """Minutes on two CPU cores: moving squares, on top of an image model trained before."""
    return changed(
        mustard,
        data={"root": "demo", "protocol": "demo", "shapes": 1, "vocab_size": 300},
        weights={"base": "demo"},
        model=TINY_MODEL,
        beside=("demo_no_mqt",),
        optim={"lr": 3e-3, "beta2": 0.99},
        train={"epochs": 2.0, "batch_size": 32, "eval_batch_size": 200,
               "select_on": "dev/all/micro_f1_sum"},
    )  # fmt: skip


def demo_base() -> ConfigDict:
    """The image model of the demo: all weights, on single frames, no attention over frames."""
    return changed(
        demo,
        beside=(),
        data={"root": "demo_frames"},
        weights={"base": "", "learn": "all", "positions": "none"},
        model={
            "num_frames": 1,
            "qformer": {"temporal": False},
            "lora": {"rank": 0},
            "routing": {"enabled": False},
        },
        optim={"lr": 7e-4},
        train={"epochs": 6.0},
    )


def no_mqt(base: Callable[[], ConfigDict], aggregate: str = "concat") -> ConfigDict:
    """Table VII, "w/o MQT": nothing attends over frames, and nothing knows their order."""
    return changed(
        base,
        beside=(),
        weights={"positions": "query"},
        model={
            "qformer": {"temporal": False, "aggregate": aggregate},
            "lora": {"sites": ("space", "cross")},
        },
    )


def mustard_text() -> ConfigDict:
    """The dialogue alone: every weight of a small language model learns, from scratch."""
    small = {k: v for k, v in TINY_MODEL.items() if k not in ("max_answer", "max_new")}
    return changed(
        mustard,
        beside=("mustard_text_anonymous",),
        data={"llm_text": "full", "shapes": 3, "vocab_size": 2048},
        weights={"learn": "all"},
        model={**small, "variant": "text", "max_prompt": 96, "max_answer": 16, "max_new": 16},
        optim={"lr": 1e-3},
        train={"epochs": 8.0, "batch_size": 16, "eval_batch_size": 138},
    )


VARIANTS: dict[str, Callable[[], ConfigDict]] = {
    "demo": demo,
    "demo_base": demo_base,
    "demo_no_mqt": functools.partial(no_mqt, demo, "mean"),
    "mustard": mustard,
    "ur_funny": short_clips,
    "clevrer_mc": short_clips,
    "qaego4d": short_clips,
    "youcook2": short_clips,
    # Table VII.
    "no_fusion": functools.partial(
        changed, mustard, data={"llm_text": "full"}, model={"max_words": 0, "max_prompt": 512}
    ),
    "no_dar": functools.partial(changed, mustard, model={"routing": {"enabled": False}}),
    "no_mqt": functools.partial(no_mqt, mustard),
    "mustard_text": mustard_text,
    "mustard_text_anonymous": functools.partial(
        changed, mustard_text, beside=(), data={"speakers": "anonymous"}
    ),
}


def get_config(variant: str = "demo") -> ConfigDict:
    """The configuration of a variant, a key of `VARIANTS`."""
    return VARIANTS[variant]()
