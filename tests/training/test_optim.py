"""Optimiser: rates, epsilon rules, masks and per-part factors against numpy."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxvsa.core.errors import UserError
from jaxvsa.training.optim import OptimOptions, make_optimizer, make_schedule, scale_by_adam_hf

pytestmark = pytest.mark.smoke

PARTS = (("text", r"text/.*"), ("rest", r".*"))


def options(**more: Any) -> OptimOptions:
    fields = {
        "lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "eps_rule": "hf",
        "weight_decay": 0.0, "decay": "kernels", "warmup": 0.1, "schedule": "linear",
        "clip_norm": 0.0, "part_lr": {"text": 1.0, "rest": 1.0},
    }  # fmt: skip
    return OptimOptions(**{**fields, **more})


def test_schedule_equals_the_published_one() -> None:
    rate = make_schedule(options(), 20)
    want = [0.0, 0.5, 1.0] + [(20 - t) / 18 for t in range(3, 21)]
    got = [float(rate(t)) for t in range(21)]
    np.testing.assert_allclose(got, 1e-3 * np.array(want), rtol=1e-6)


@pytest.mark.parametrize(("kind", "middle"), [("constant", 1.0), ("cosine", 0.5)])
def test_schedule_kinds_at_the_middle_of_the_fall(kind: Any, middle: float) -> None:
    rate = make_schedule(options(schedule=kind, warmup=0.0), 10)
    np.testing.assert_allclose(float(rate(5)), 1e-3 * middle, rtol=1e-6)


def test_hf_rule_by_hand_and_its_effective_epsilon() -> None:
    grad, eps = 0.5, 0.1
    tx = scale_by_adam_hf(0.9, 0.999, eps)
    state = tx.init(jnp.zeros(1))
    step, state = tx.update(jnp.full(1, grad), state)
    m, v = 0.1 * grad, 0.001 * grad**2
    want = m * np.sqrt(1 - 0.999) / (1 - 0.9) / (np.sqrt(v) + eps)
    np.testing.assert_allclose(step, [want], rtol=1e-5)
    wider = eps / np.sqrt(1 - 0.999)
    torch_rule, _ = optax.scale_by_adam(0.9, 0.999, wider).update(
        jnp.full(1, grad), optax.scale_by_adam(0.9, 0.999, wider).init(jnp.zeros(1))
    )
    np.testing.assert_allclose(step, torch_rule, rtol=1e-5)
    assert int(state.count) == 1


def tree() -> dict[str, Any]:
    return {
        "text": {"kernel": jnp.ones((2, 2)), "norm": {"scale": jnp.ones(2)}},
        "conv_bias_0": jnp.ones((1, 2)),
        "token": jnp.ones((1, 2)),
        "gate": jnp.ones(()),
        "whole": jnp.ones(2),
    }


def test_decay_spares_biases_norms_tokens_and_vectors() -> None:
    tx, _ = make_optimizer(
        options(weight_decay=0.1, warmup=0.0, schedule="constant"), 5, PARTS, tree()
    )
    zero = jax.tree.map(jnp.zeros_like, tree())
    updates, _ = tx.update(zero, tx.init(tree()), tree())
    np.testing.assert_allclose(updates["text"]["kernel"], -1e-4, rtol=1e-6)
    spared = [updates[name] for name in ("conv_bias_0", "token", "gate", "whole")]
    for update in (updates["text"]["norm"]["scale"], *spared):
        np.testing.assert_array_equal(update, 0)


def test_part_rate_scales_the_updates_of_its_part_only() -> None:
    steps = []
    for factor in (1.0, 0.25):
        tx, _ = make_optimizer(
            options(part_lr={"text": factor, "rest": 1.0}, warmup=0.0), 5, PARTS, tree()
        )
        steps.append(tx.update(tree(), tx.init(tree()), tree())[0])
    np.testing.assert_allclose(
        steps[1]["text"]["kernel"], 0.25 * steps[0]["text"]["kernel"], rtol=1e-6
    )
    np.testing.assert_array_equal(steps[1]["token"], steps[0]["token"])


def test_clipping_bounds_the_global_norm() -> None:
    big = jax.tree.map(lambda leaf: 100.0 * leaf, tree())
    tx, _ = make_optimizer(options(clip_norm=1.0, warmup=0.0), 5, PARTS, tree())
    plain, _ = make_optimizer(options(warmup=0.0), 5, PARTS, tree())
    clipped = optax.tree.get(tx.update(big, tx.init(tree()), tree())[1], "mu")
    norm = optax.tree.norm(jax.tree.map(lambda leaf: leaf / 0.1, clipped))
    np.testing.assert_allclose(norm, 1.0, rtol=1e-5)
    unclipped = optax.tree.get(plain.update(big, plain.init(tree()), tree())[1], "mu")
    assert float(optax.tree.norm(unclipped)) > 10


@pytest.mark.parametrize(
    ("rates", "match"),
    [
        ({"txt": 1.0, "rest": 1.0}, "unknown part 'txt' .* did you mean 'text'"),
        ({"text": 1.0}, "part_lr.rest is missing"),
    ],
)
def test_part_rates_must_name_every_part(rates: dict[str, float], match: str) -> None:
    with pytest.raises(UserError, match=match):
        make_optimizer(options(part_lr=rates), 5, PARTS, tree())


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"lr": -1.0}, r"config\.optim\.lr is -1\.0; it must be at least 0"),
        ({"lr": math.nan}, r"config\.optim\.lr is nan"),
        ({"beta1": 1.5}, r"beta1 is 1\.5; it must be from 0 to 1"),
        ({"warmup": 2.0}, r"warmup is 2\.0; it must be from 0 to 1"),
        ({"clip_norm": -1.0}, r"clip_norm is -1\.0"),
        ({"part_lr": {"text": -1.0, "rest": 1.0}}, r"config\.optim\.part_lr\.text is -1\.0"),
    ],
)
def test_numbers_that_cannot_work_are_refused(changed: dict[str, Any], match: str) -> None:
    with pytest.raises(UserError, match=match):
        options(**changed)
