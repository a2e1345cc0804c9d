"""Low-rank changes by hand, merged, and against PEFT."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvsa.core.errors import UserError
from jaxvsa.core.precision import Precision
from jaxvsa.layers.lora import LoraDense, LoraOptions, merge

OPTIONS = LoraOptions(2, 8.0, ("space", "time"))


def layer(options: LoraOptions = OPTIONS) -> tuple[LoraDense, Any, np.ndarray]:
    dense = LoraDense(3, ("space", "time"), options, Precision())
    x_bzd = np.random.default_rng(0).normal(size=(1, 4, 5)).astype(np.float32)
    shapes = jax.eval_shape(lambda: dense.init(jax.random.key(0), x_bzd, "space"))["params"]
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32), shapes)
    return dense, params, x_bzd


def test_two_uses_of_one_kernel_by_hand() -> None:
    dense, params, x_bzd = layer()
    assert set(params) == {"kernel", "bias", "lora_space", "lora_time"}
    for use in ("space", "time"):
        change = params[f"lora_{use}"]
        want = x_bzd @ (params["kernel"] + 4.0 * change["down"] @ change["up"]) + params["bias"]
        got = dense.apply({"params": params}, x_bzd, use)
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
        whole = jax.tree.map(np.asarray, merge(params, use, OPTIONS))
        np.testing.assert_allclose(x_bzd @ whole["kernel"] + whole["bias"], got, rtol=1e-5,
                                   atol=1e-5)  # fmt: skip


def test_a_new_layer_is_the_frozen_one() -> None:
    dense, _, x_bzd = layer()
    params = jax.device_get(dense.init(jax.random.key(0), x_bzd, "time")["params"])
    assert float(jnp.abs(params["lora_time"]["down"]).max()) <= 1 / np.sqrt(5)
    assert float(jnp.abs(params["lora_space"]["down"]).max()) > 0
    want = x_bzd @ params["kernel"] + params["bias"]
    np.testing.assert_allclose(dense.apply({"params": params}, x_bzd, "time"), want, rtol=1e-6)


@pytest.mark.parametrize("options", [LoraOptions(0, 1.0, ("space",)), LoraOptions(2, 1.0, ())])
def test_no_rank_or_no_site_is_a_plain_layer(options: LoraOptions) -> None:
    _, params, _ = layer(options)
    assert set(params) == {"kernel", "bias"}


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(UserError, match=r"unknown 'tine'"):
        LoraOptions(2, 1.0, ("tine",))
    with pytest.raises(UserError, match="rank is -1"):
        LoraOptions(-1, 1.0, ())
    dense, params, x_bzd = layer()
    with pytest.raises(ValueError, match="unknown use 'cross'"):
        dense.apply({"params": params}, x_bzd, "cross")


@pytest.mark.torch
def test_forward_equals_peft() -> None:
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    dense, params, x_bzd = layer()
    model = torch.nn.Sequential()
    model.add_module("query", torch.nn.Linear(5, 3))
    wrapped = peft.get_peft_model(
        model, peft.LoraConfig(r=2, lora_alpha=8, lora_dropout=0.0, target_modules=["query"])
    )
    change = params["lora_time"]
    theirs = wrapped.base_model.model.query
    with torch.no_grad():
        theirs.base_layer.weight.copy_(torch.tensor(params["kernel"].T))
        theirs.base_layer.bias.copy_(torch.tensor(params["bias"]))
        theirs.lora_A["default"].weight.copy_(torch.tensor(change["down"].T))
        theirs.lora_B["default"].weight.copy_(torch.tensor(change["up"].T))
        want = wrapped(torch.tensor(x_bzd)).numpy()
    got = dense.apply({"params": params}, x_bzd, "time")
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
