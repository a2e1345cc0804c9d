"""Evaluation: the video side once per video, against once per comment and against full padding.

    python -m benchmarks.bench_eval                        (RoBERTa-base, then MiniLM's size)
    python -m benchmarks.bench_eval --tiny

Three ways over the same comments with the same weights: `shared` is what evaluate and predict do;
`unshared` gives every comment its own frames; `padded` also pads every text to its limit and runs
the temporal tower on the full visual length. Their outputs are compared first.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness
from benchmarks.bench_train_step import build_system, configure, shape_of
from benchmarks.harness import VOCAB
from jaxvsa.core import memory
from jaxvsa.core.flops import count_flops
from jaxvsa.core.mesh import MeshOptions, make_mesh
from jaxvsa.data.pipeline import batches
from jaxvsa.data.plan import BatchPlan
from jaxvsa.evaluation.evaluator import run
from jaxvsa.layers.temporal import tower_margin
from jaxvsa.systems.base import abstract_batch

MINILM = {"width": 384, "num_layers": 6, "num_heads": 12, "mlp_width": 1536}
WAYS = {"shared": (True, False), "unshared": (False, False), "padded": (False, True)}


class Ways:
    """Batches of every way, and their evaluation."""

    def __init__(self, config: dict[str, Any], corpus: harness.Corpus, batch_size: int) -> None:
        """Makes all batches beforehand: the pipeline is not what is timed."""
        model = config["model"]
        self.config, self.corpus = config, corpus
        self.system = build_system(config, corpus)
        self.mesh = make_mesh(MeshOptions(-1, 1, 1, "jit"), jax.devices()[:1])
        self.tables = {"video": jnp.asarray(corpus.features.values_nf)}
        self.batches: dict[str, list[dict[str, np.ndarray]]] = {}
        self.examples = {}
        for name, (share, pad) in WAYS.items():
            margin = model["visual_length"] if pad else tower_margin(model["num_scales"])
            examples = corpus.examples(
                model["visual_length"], margin,
                share=share, pad_all=pad, text_len=config["data"]["text_len"],
            )  # fmt: skip
            size = min(batch_size, 8) if pad else batch_size  # padded batches are large
            plan = BatchPlan(examples.axes(), size, shapes=2, order=examples.in_order())
            dataset = batches(plan, examples)
            self.batches[name] = [dataset[step] for step in range(len(plan))]
            self.examples[name] = examples
        shapes = abstract_batch(self.system, self.sizes("shared"))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        self.params = jax.jit(self.system.init)(jax.random.key(0), zeros)

    def sizes(self, name: str) -> dict[str, int]:
        """Sizes if all comments were one batch without any padding."""
        axes = self.examples[name].axes()
        rows = np.arange(len(self.examples[name])).reshape(1, 1, -1)
        found = {letter: int(axis.sizes(rows)[0]) for letter, axis in axes.items()}
        return {"g": 1, "b": rows.size, "f": self.corpus.features.width, **found}

    def evaluate(self, name: str, part: slice) -> dict[str, np.ndarray]:
        """Probabilities of the comments of some batches, in the order of their numbers."""
        chosen = self.batches[name][part]
        found, _ = run(self.system, ["classify"], self.params, self.tables, chosen, self.mesh)
        return found

    def flops(self, name: str) -> int:
        """Operations of one comment each, without padding of the batch."""
        batch = abstract_batch(self.system, self.sizes(name))
        return count_flops(self.system.tasks["classify"].outputs, self.params, batch)


def compare(config: dict[str, Any], corpus: harness.Corpus, args: argparse.Namespace) -> Any:
    """One encoder size."""
    ways = Ways(config, corpus, args.batch)
    padded = slice(0, args.padded_batches)
    rows = np.concatenate([b["index_b"][b["valid_b"]] for b in ways.batches["padded"][padded]])
    found = {name: ways.evaluate(name, slice(None)) for name in ("shared", "unshared")}
    found["padded"] = ways.evaluate("padded", padded)
    order = np.sort(rows)
    difference = {
        name: max(
            float(np.abs(found["shared"][t][chosen] - found[name][t]).max()) for t in found[name]
        )
        for name, chosen in (("unshared", slice(None)), ("padded", order))
    }
    if max(difference.values()) > (1e-5 if args.dtype == "float32" else 2e-2):
        raise SystemExit(f"the ways do not give the same outputs: {difference}")
    parts = {"shared": slice(None), "unshared": slice(None), "padded": padded}
    seconds = harness.alternate(
        {name: (lambda n=name: ways.evaluate(n, parts[n])) for name in WAYS}, args.repeats
    )
    count = {"shared": len(corpus.tokens), "unshared": len(corpus.tokens), "padded": len(rows)}
    rate = {name: count[name] / statistics.median(found) for name, found in seconds.items()}
    ceiling = ways.flops("unshared") / ways.flops("shared")
    speed_up = rate["shared"] / rate["unshared"]
    flops = ways.flops("shared") / len(corpus.tokens) * rate["shared"]
    return {
        "shapes": {name: len({shape_of(b) for b in found}) for name, found in ways.batches.items()},
        "largest_difference": difference,
        "seconds": {name: harness.summary(found) for name, found in seconds.items()},
        "comments_per_second": rate,
        "ratio_unshared": speed_up,
        "flop_ceiling": ceiling,
        "share_of_ceiling": speed_up / ceiling,
        "ratio_padded": rate["shared"] / rate["padded"],
        "gflop_per_comment": ways.flops("shared") / len(corpus.tokens) / 1e9,
        "gflop_per_second": flops / 1e9,
    }


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Measures, prints and writes one record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="tiny model: does it run at all?")
    parser.add_argument("--batch", type=int, default=128, help="comments of a batch")
    parser.add_argument("--videos", type=int, default=40, help="videos, 13 comments each")
    parser.add_argument("--padded-batches", type=int, default=1, help="timed batches of `padded`")
    parser.add_argument("--repeats", type=int, default=5, help="timings of each way")
    parser.add_argument("--dtype", default="float32", help="compute type")
    parser.add_argument("--out", help="file to write instead of benchmarks/results/")
    args = parser.parse_args(argv)
    memory.keep_freed()  # as every door does
    memory.one_step_at_a_time()
    config, corpus = configure(args.tiny, args.dtype)
    videos = 5 if args.tiny else args.videos
    corpus = harness.make_corpus(
        13 * videos, videos, corpus.features.width, VOCAB,
        longest=config["data"]["text_len"] - 2 if args.tiny else 237,
    )  # fmt: skip
    small = copy.deepcopy(config)
    if not args.tiny:
        small["model"]["text"] |= MINILM
    record = {
        "benchmark": "eval", "machine": harness.machine(), "dtype": args.dtype,
        "batch": args.batch, "comments": 13 * videos, "videos": videos,
        "roberta_base_size": compare(config, corpus, args),
        "minilm_size": compare(small, corpus, args),
        "matmul_ceiling_gflop_per_second": harness.matmul_ceiling(args.dtype) / 1e9,
    }  # fmt: skip
    harness.write(f"eval_{jax.default_backend()}_{args.dtype}", record, args.out)
    return record


if __name__ == "__main__":
    main()
