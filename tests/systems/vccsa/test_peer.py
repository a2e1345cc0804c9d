"""The PyTorch peer against every golden case and against the plain oracle."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Literal

import numpy as np
import pytest
from systems.vccsa import golden as helper

pytestmark = pytest.mark.torch
CASES = pytest.mark.parametrize("case", helper.cases(), ids=lambda case: case.name)
DTYPES = pytest.mark.parametrize("dtype", ["float32", "float64"])


@pytest.fixture(scope="module")
def maker() -> Iterator[ModuleType]:
    """make_golden.py, which drives the peer; on one thread, since its arrays are tiny."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield importlib.import_module("systems.vccsa.make_golden")
    torch.set_num_threads(threads)


@CASES
@DTYPES
def test_peer_equals_the_golden_outputs_and_gradients(
    maker: ModuleType, case: Path, dtype: helper.Dtype
) -> None:
    golden = helper.load(case)
    outputs, grads = maker.compute(
        golden.config, golden.state, inputs(golden), getattr(maker.torch, dtype)
    )
    assert {str(value.dtype) for value in outputs.values()} == {dtype}
    helper.check_outputs(golden, outputs, dtype)
    helper.check_grads(golden, grads, dtype)


@CASES
@DTYPES
@pytest.mark.parametrize("rule", ["hf", "torch"])
def test_peer_follows_the_golden_trajectory(
    maker: ModuleType, case: Path, dtype: helper.Dtype, rule: Literal["hf", "torch"]
) -> None:
    golden = helper.load(case)
    losses = maker.trajectory(
        golden.config, golden.state, inputs(golden), rule, getattr(maker.torch, dtype)
    )
    helper.check_trajectory(golden, rule, losses, dtype)


@CASES
def test_learning_rates_are_those_of_the_case(maker: ModuleType, case: Path) -> None:
    golden = helper.load(case)
    np.testing.assert_allclose(
        maker.learning_rates(golden.config), golden.io["traj_lr"], rtol=1e-12
    )


def test_learning_rate_by_hand(maker: ModuleType) -> None:
    got = [maker.peer_vccsa.learning_rate(update, 1.0, 10, 0.4) for update in range(11)]
    np.testing.assert_allclose(got, [0, 0.25, 0.5, 0.75, 1, 5 / 6, 4 / 6, 0.5, 2 / 6, 1 / 6, 0])


def test_committed_inputs_are_those_the_maker_draws(maker: ModuleType) -> None:
    golden = helper.load(helper.COMMITTED)
    rng = np.random.default_rng(golden.config["seed"])
    state, batch = maker.random_state(rng), maker.random_batch(rng)
    assert state.keys() == golden.state.keys()
    for name, want in (golden.state | inputs(golden)).items():
        np.testing.assert_array_equal((state | batch)[name], want, err_msg=name)
    assert maker.covers(golden.outputs, batch)


def test_committed_sizes_all_differ(maker: ModuleType) -> None:
    model, roberta = dict(maker.MODEL), maker.ROBERTA
    for name in ("visual_out_dim", "dropout", "consensus_mask"):  # tied to another, or no size
        del model[name]
    sizes = [*model.values(), maker.BATCH["size"], roberta["num_attention_heads"]]
    sizes += [roberta[name] for name in ("intermediate_size", "max_position_embeddings")]
    sizes.append(roberta["vocab_size"])
    assert len(set(sizes)) == len(sizes)


@pytest.mark.parametrize("rule", ["hf", "torch"])
def test_weight_decay_is_decoupled(maker: ModuleType, rule: str) -> None:
    torch = maker.torch
    layer = torch.nn.Linear(1, 1, bias=False, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.fill_(2.0)
    optimizer = maker.peer_vccsa.make_optimizer(layer, rule, 0.1, weight_decay=0.5, eps=0.0)
    layer(torch.full((1, 1), 3.0, dtype=torch.float64)).sum().backward()
    optimizer.step()
    # The first update moves by lr; decay takes lr * 0.5 of the weight after (hf) or before it.
    want = {"hf": (2 - 0.1) * 0.95, "torch": 2 * 0.95 - 0.1}[rule]
    np.testing.assert_allclose(layer.weight.item(), want, rtol=1e-12)


def test_unknown_rule_is_refused(maker: ModuleType) -> None:
    with pytest.raises(ValueError, match="unknown rule 'adam'; known: hf, torch"):
        maker.peer_vccsa.make_optimizer(maker.torch.nn.Linear(1, 1), "adam", 0.1)


def test_dropout_acts_in_training_only(maker: ModuleType) -> None:
    golden = helper.load(helper.COMMITTED)
    torch = maker.torch
    config = golden.config | {"model": golden.model | {"dropout": 0.2}}
    model = maker.make_model(config, golden.state, torch.float32)
    batch = maker.as_tensors(inputs(golden), torch.float32)
    first, second = (model(batch)["grounding_attention"] for _ in range(2))
    assert (first == 0).any() and not torch.equal(first, second)
    outputs = {name: value.detach().numpy() for name, value in model.eval()(batch).items()}
    losses = [name for name in golden.outputs if name.endswith("_loss")]
    helper.check_outputs(golden, outputs, "float32", allow_missing=losses)


def inputs(golden: helper.Golden) -> dict[str, np.ndarray]:
    """The inputs and labels of a case."""
    return {k: v for k, v in golden.io.items() if not k.startswith(("out_", "traj_"))}
