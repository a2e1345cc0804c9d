"""CleveReward on VideoCross: the published setting and what is compared with it.

    python -m jaxvsa.train --config configs/clevereward.py                            (demo)
    python -m jaxvsa.train --config configs/clevereward.py:paper --config.data.root=data/videocross

Sources: "paper" is "CleveReward: Contrastive Learning-Engined Video Reward Training on Different
Benchmark Datasets". It gives no hyper-parameters beside the width: what it does not say is
"chosen". A variant is a function from the paper's setting to a changed copy, named by what it
changes.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict


def paper() -> ConfigDict:
    """Two projections, a cosine, log-sigmoid of the difference, negatives of the batch."""
    return ConfigDict(
        {
            "system": "clevereward",
            "seed": 0,
            "init_from": "",  # a run whose best parameters start this one
            "profile": "",  # FIRST:LAST, as 10:20, traces these updates into RUN/profile
            "data": {
                "root": "",  # a folder of `prepare videocross` with features; "demo" = synthetic
                "num_frames": 16,  # chosen
                "num_words": 64,  # chosen
                "sampling": 0.5,  # chosen: a source of n pairs has a share of sqrt(n)
                "resident": "auto",  # features on the device if they fit; "no": on the host
                "shapes": 4,  # most padded shapes of the batches, each one compilation
            },
            "weights": {},
            "model": {
                "head": "cosine",  # paper, 3.1.2
                "width": 256,  # paper, 3.1.2
                "pool_video": "mean",  # chosen
                "pool_text": "mean",  # chosen
                "num_layers": 2,  # of pool_video "transformer"; so are the next two
                "num_heads": 4,
                "mlp_width": 1024,
                "scale": "learned",  # chosen: the paper names none; `no_scale` takes it literally
                "scale_init": 10.0,
                "dropout": 0.0,
                "hidden": 256,  # of the regression head
                "precision": {"param": "float32", "compute": "float32"},
            },
            "loss": {
                "kind": "bt",  # paper, Eq. of 3.1
                "margin": "gap",
                "margin_size": 0.57,
                "label_smoothing": 0.0,
                "source_weights": (),
                "tie_k": 2.0,
                "learn_tie_k": True,
                "negatives": "inbatch",  # paper, 3.1.2: contrastive, as CLIP
                "contrastive": 0.1,  # chosen
                "center": 0.0,
                "target": "raw",  # of kind "mse"
            },
            "beside": (),  # variants that are trained, too, and stand in the same table
            "optim": {
                "lr": 1e-3,  # chosen; so is all below
                "beta1": 0.9,
                "beta2": 0.999,
                "eps": 1e-8,
                "eps_rule": "torch",
                "weight_decay": 0.01,
                "decay": "kernels",
                "warmup": 0.05,
                "schedule": "cosine",
                "clip_norm": 1.0,
                "part_lr": {"loss": 1.0, "model": 1.0},
            },
            "train": {
                "steps": 0,
                "epochs": 20.0,
                "batch_size": 4096,
                "accumulate": 1,
                "eval_batch_size": 8192,
                "eval_every": 0,
                "save_every": 0,
                "log_every": 50,
                "select_on": "dev/pairs/without_ties",
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


def regression(base: Callable[[], ConfigDict], target: str) -> ConfigDict:
    """The paper's comparison, 4.1.1: scores are regressed, on the same features."""
    return changed(
        base,
        beside=(),
        model={"head": "regression"},
        loss={"kind": "mse", "target": target, "negatives": "none"},
    )


def demo() -> ConfigDict:
    """A minute or two on two CPU cores: two scales, votes across them, votes on prompts."""
    return changed(
        paper,
        data={"root": "demo"},
        beside=(
            "demo_btt", "demo_no_scale", "demo_no_negatives",
            "demo_sft_raw", "demo_sft_zscore", "demo_sft_affine",
        ),
        optim={"lr": 3e-3},
        train={"steps": 2000, "batch_size": 256, "eval_every": 1000, "epochs": 1.0},
    )  # fmt: skip


def variants_of(base: Callable[[], ConfigDict], start: str) -> dict[str, Callable[[], ConfigDict]]:
    """What is compared with a setting, by name."""
    alone = functools.partial(changed, base, beside=())
    return {
        f"{start}btt": functools.partial(alone, loss={"kind": "btt"}),
        f"{start}no_scale": functools.partial(alone, model={"scale": "none"}),
        f"{start}no_negatives": functools.partial(alone, loss={"negatives": "none"}),
        f"{start}sft_raw": functools.partial(regression, base, "raw"),
        f"{start}sft_minmax": functools.partial(regression, base, "minmax"),
        f"{start}sft_zscore": functools.partial(regression, base, "zscore"),
        f"{start}sft_affine": functools.partial(regression, base, "per_source_affine"),
    }


VARIANTS: dict[str, Callable[[], ConfigDict]] = {
    "demo": demo,
    **variants_of(demo, "demo_"),
    "paper": paper,
    **variants_of(paper, ""),
}


def get_config(variant: str = "demo") -> ConfigDict:
    """The configuration of a variant, a key of `VARIANTS`."""
    return VARIANTS[variant]()
