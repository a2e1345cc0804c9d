"""Bytes of every part of MTransLLAMA at full size, on one device of several meshes.

    python -m benchmarks.sizes_mtransllama

Nothing is allocated: shapes are traced, shardings are those that training uses.
"""

from __future__ import annotations

import argparse
import math
import os
from typing import Any

MESHES = {"1 device": (1, 1, 1), "data 8": (8, 1, 1), "fsdp 2": (1, 2, 1), "fsdp 4": (1, 4, 1),
          "fsdp 8": (1, 8, 1), "fsdp 2, tensor 4": (1, 2, 4)}  # fmt: skip


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Prints the table and writes the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variant", default="mustard", help="of configs/mtransllama.py")
    parser.add_argument("--out", help="file to write instead of benchmarks/results/")
    args = parser.parse_args(argv)
    # Read when JAX first looks at its devices.
    os.environ["XLA_FLAGS"] = (
        os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    )
    os.environ["JAX_PLATFORMS"] = "cpu"
    from benchmarks import harness

    record = {
        "benchmark": "sizes", "machine": harness.machine(), "variant": args.variant,
        **measure(args.variant),
    }  # fmt: skip
    columns = list(next(iter(record["mib_per_device"].values())))
    print(f"{'MiB per device':24}" + "".join(f"{name:>18}" for name in columns))
    for part, sizes in record["mib_per_device"].items():
        print(f"{part:24}" + "".join(f"{sizes[name]:18,.0f}" for name in columns))
    harness.write(f"sizes_mtransllama_{args.variant}", record, args.out)
    return record


def measure(variant: str) -> dict[str, Any]:
    """Values that learn, values that are frozen, and MiB on a device by part and mesh."""
    import jax

    from jaxvsa.core import mesh as meshes
    from jaxvsa.core import trees
    from jaxvsa.core.config import build, load_config, to_plain
    from jaxvsa.systems.base import abstract_batch
    from jaxvsa.systems.mtransllama.system import Facts
    from jaxvsa.systems.mtransllama.system import build as build_system
    from jaxvsa.training.optim import OptimOptions, make_optimizer
    from jaxvsa.training.state import start
    from jaxvsa.workflows.questions import full_sizes

    config = to_plain(load_config(f"mtransllama:{variant}"))
    # Vicuna's vocabulary with [PAD], BERT's with [DEC].
    pixels = 3 * config["model"]["vision"]["image_size"] ** 2
    facts = Facts({"sarcasm": ("no", "yes")}, 32001, 32000, 2, 30523, "pixels", pixels, "uint8")
    system = build_system(config, facts)
    batch = abstract_batch(system, full_sizes(config, facts))
    params = jax.eval_shape(system.init, jax.random.key(0), batch)
    learn, held = trees.split(params, system.trainable)
    options = build(OptimOptions, config["optim"], "config.optim")
    tx, _ = make_optimizer(options, 10, system.parts, learn)
    state = jax.eval_shape(lambda params: start(system, tx, params, jax.random.key(0)), params)
    found: dict[str, dict[str, float]] = {}
    for name, (data, fsdp, tensor) in MESHES.items():
        mesh = meshes.make_mesh(meshes.MeshOptions(data, fsdp, tensor, "jit"))
        placed = meshes.shardings(state, system.partition, mesh, params=params)
        leaves, places = trees.named(state), trees.named(placed)
        for path, leaf in leaves.items():
            if not hasattr(leaf, "dtype") or path in ("step", "rng", "skipped"):
                continue
            top, *rest = path.split("/")
            part = {"held": f"{rest[0]}, frozen", "learn": "what learns"}.get(top, "its moments")
            shape = places[path].shard_shape(leaf.shape)
            size = math.prod(shape) * leaf.dtype.itemsize / 2**20
            row = found.setdefault(part, {})
            row[name] = row.get(name, 0.0) + size
    total = {name: sum(row[name] for row in found.values()) for name in MESHES}
    return {
        "values_that_learn": trees.num_values(learn),
        "values_frozen": trees.num_values(held),
        "mib_per_device": {**found, "sum": total},
    }


if __name__ == "__main__":
    main()
