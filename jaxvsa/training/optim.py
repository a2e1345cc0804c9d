"""AdamW with the two published placements of epsilon, schedules, masks and per-part rates."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from jaxvsa.core import trees
from jaxvsa.core.errors import UserError, nearest

Schedule = Callable[[Any], Any]
_BARE = re.compile(r"(^|.*[/_])(bias|scale|token)(_\d+)?$|.*norm.*")


@dataclasses.dataclass(frozen=True)
class OptimOptions:
    """Section `optim` of a configuration.

    Attributes:
        lr: peak learning rate.
        beta1: decay of the first moment.
        beta2: decay of the second moment.
        eps: see `eps_rule`.
        eps_rule: "hf" adds eps to the root of the raw second moment, so that its effective value
            is eps / sqrt(1 - beta2^t); "torch" adds it after the bias correction.
        weight_decay: decoupled, times the learning rate.
        decay: which parameters decay: "all", or "kernels" (no bias, norm, token or other vector).
        warmup: share of all steps over which the rate rises linearly from 0; the first update has
            rate 0, as published.
        schedule: after the warm-up: "linear" falls to 0 at the last step, "cosine" likewise,
            "constant" stays.
        clip_norm: global gradient norm above which gradients are scaled down; 0 = off.
        part_lr: part of the system -> factor on the learning rate; every part must be named.
    """

    lr: float
    beta1: float
    beta2: float
    eps: float
    eps_rule: Literal["hf", "torch"]
    weight_decay: float
    decay: Literal["all", "kernels"]
    warmup: float
    schedule: Literal["linear", "cosine", "constant"]
    clip_norm: float
    part_lr: dict[str, float]

    def __post_init__(self) -> None:
        """Refuses numbers with which no run can learn."""
        least = ("lr", "eps", "weight_decay", "clip_norm")
        values = {name: (getattr(self, name), math.inf) for name in least}
        values |= {name: (getattr(self, name), 1.0) for name in ("beta1", "beta2", "warmup")}
        values |= {f"part_lr.{part}": (rate, math.inf) for part, rate in self.part_lr.items()}
        for name, (value, most) in values.items():
            if not (0 <= value <= most and math.isfinite(value)):
                limit = "at least 0" if most == math.inf else "from 0 to 1"
                raise UserError(f"config.optim.{name} is {value}; it must be {limit}")


def make_schedule(options: OptimOptions, num_steps: int) -> Schedule:
    """Learning rate of update t = 0, 1, ...

    Source: VC-CSA code: warm-up over int(warmup * num_steps), rate t / warm-up, then linear to 0.
    """
    rise = int(options.warmup * num_steps)

    def rate(step: Any) -> Any:
        step = jnp.asarray(step)
        wide = jnp.promote_types(jnp.result_type(float), jnp.float32)
        t = step.astype(wide)
        left = (num_steps - t) / max(num_steps - rise, 1)
        fall = {
            "linear": jnp.clip(left, 0, 1),
            "cosine": 0.5 * (1 + jnp.cos(jnp.pi * (1 - jnp.clip(left, 0, 1)))),
            "constant": jnp.ones_like(t),
        }[options.schedule]
        return options.lr * jnp.where(step < rise, t / max(rise, 1), fall)

    return rate


def scale_by_adam_hf(beta1: float, beta2: float, eps: float) -> optax.GradientTransformation:
    """Adam whose epsilon meets the second moment before its bias is corrected.

    Source: the AdamW of Hugging Face transformers, which VC-CSA used:
    m sqrt(1 - beta2^t) / (1 - beta1^t) / (sqrt(v) + eps). State and layout are `optax.adamw`'s.
    """
    inner = optax.scale_by_adam(beta1, beta2, eps)

    def update(
        grads: Any, state: optax.ScaleByAdamState, params: Any = None
    ) -> tuple[Any, optax.ScaleByAdamState]:
        mu = optax.tree.update_moment(grads, state.mu, beta1, 1)
        nu = optax.tree.update_moment_per_elem_norm(grads, state.nu, beta2, 2)
        count = optax.safe_increment(state.count)

        def direction(m: jax.Array, v: jax.Array) -> jax.Array:
            t = count.astype(m.dtype)
            return m * jnp.sqrt(1 - beta2**t) / (1 - beta1**t) / (jnp.sqrt(v) + eps)

        return jax.tree.map(direction, mu, nu), optax.ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformation(inner.init, update)


def make_optimizer(
    options: OptimOptions, num_steps: int, parts: tuple[tuple[str, str], ...], learn: Any
) -> tuple[optax.GradientTransformation, Schedule]:
    """The update rule of a run, and its schedule for the log.

    Args:
        options: see `OptimOptions`.
        num_steps: updates of the whole run.
        parts: of the system, (name, regex over parameter paths); rules over the whole tree.
        learn: the parameters that learn (or their shapes).

    Raises:
        UserError: `part_lr` does not name exactly the system's parts.
    """
    names = [name for name, _ in parts]
    for name in options.part_lr:
        if name not in names:
            raise UserError(
                f"unknown part '{name}' in config.optim.part_lr; known: {names}"
                f"{nearest(name, names)}"
            )
    for name in names:
        if name not in options.part_lr:
            raise UserError(f"config.optim.part_lr.{name} is missing; 1.0 keeps the common rate")
    schedule = make_schedule(options, num_steps)
    paths = trees.named(learn)
    factor = _per_path(paths, parts, options.part_lr)
    decays = {
        path: options.decay == "all" or (leaf.ndim > 1 and not _BARE.fullmatch(path))
        for path, leaf in paths.items()
    }
    steps = [optax.clip_by_global_norm(options.clip_norm)] if options.clip_norm else []
    adam = scale_by_adam_hf if options.eps_rule == "hf" else optax.scale_by_adam
    steps.append(adam(options.beta1, options.beta2, options.eps))
    if options.weight_decay:
        steps.append(optax.add_decayed_weights(options.weight_decay, mask=trees.nest(decays)))
    steps.append(optax.scale_by_learning_rate(schedule))
    if set(factor.values()) != {1.0}:
        scale = trees.nest(factor)
        steps.append(optax.stateless(lambda updates, _: jax.tree.map(_times, scale, updates)))
    return optax.chain(*steps), schedule


def _times(factor: float, update: jax.Array) -> jax.Array:
    return factor * update


def _per_path(
    paths: Mapping[str, Any], parts: tuple[tuple[str, str], ...], rates: Mapping[str, float]
) -> dict[str, float]:
    """Factor of every path; parts of a frozen model may own no path that learns."""
    found = {}
    for path in paths:
        name = next(name for name, rule in parts if re.fullmatch(rule, path))
        found[path] = float(rates[name])
    return found
