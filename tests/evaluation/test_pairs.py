"""What rewards say about pairs: figures by hand, parts, rows that need no model, tables."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math

import numpy as np
import pytest
from rich.console import Console

from jaxvsa.evaluation.pair_baselines import generator_odds, pair_baselines
from jaxvsa.evaluation.pair_tables import render_pairs, write_reliability
from jaxvsa.evaluation.pairs import (
    DevFit,
    JudgedPairs,
    difference,
    fit_on_dev,
    measure_pairs,
    reward_rows,
)
from jaxvsa.evaluation.tables import Row
from jaxvsa.metrics.clustered import linearised_error


def _pairs(answer, **columns) -> JudgedPairs:
    num = len(answer)
    values = {
        "pair_id": [f"p{n}" for n in range(num)],
        "question": ["overall quality: a cat"] * num,
        "video_a": [f"a{n}" for n in range(num)],
        "video_b": [f"b{n}" for n in range(num)],
        "source": ["t2vqa"] * num,
        "dimension": ["overall"] * num,
        "kind": ["same_prompt"] * num,
        "group": [f"g{n // 2}" for n in range(num)],
        "answer_b": np.array(answer, np.int8),
        "gap_b": np.full(num, np.nan),
    }
    return JudgedPairs(**(values | columns))


def _rewards(difference_b) -> np.ndarray:
    return np.stack([np.asarray(difference_b, float), np.zeros(len(difference_b))], axis=1)


# Ordered right but for the third; the second tie is within .2, the first is not.
ANSWER = [1, -1, 1, 0, 0, 1]
DIFFERENCE = [2.0, -1.0, -0.5, 0.6, 0.1, 0.0]


def test_figures_of_the_whole_by_hand():
    values, errors = measure_pairs(_pairs(ANSWER), _rewards(DIFFERENCE), "test", DevFit(0.2, 2.0))
    of = {name.removeprefix("test/pairs/"): value for name, value in values.items()}
    assert of["without_ties"] == 2.5 / 4
    assert of["with_ties"] == 3 / 6 and of["eps"] == 0.2
    # With .6 both ties are right, with .1 one: 2 + 2 and 2 + 1 of 6.
    assert of["with_ties_oracle"] == 4 / 6 and of["eps_oracle"] == 0.6
    assert (of["num_pairs"], of["num_decided"]) == (6, 4)
    signed = np.array([2.0, 1.0, -0.5, 0.0])
    assert of["log_loss"] == pytest.approx(np.mean(np.log1p(np.exp(-signed / 2))))
    assert of["log_loss_raw"] == pytest.approx(np.mean(np.log1p(np.exp(-signed))))
    assert of["brier"] == pytest.approx(np.mean((1 / (1 + np.exp(signed / 2))) ** 2))
    assert of["temperature"] == 2 and of["bias"] == pytest.approx(0.5 - 1)
    credit = np.array([1, 1, 0, np.nan, np.nan, 0.5])
    assert errors["test/pairs/without_ties"] == linearised_error(credit, _pairs(ANSWER).group)
    assert set(errors) <= set(values)


def test_parts_are_the_figures_of_their_pairs():
    part = ["x", "x", "y", "x", "y", "y"]
    pairs = _pairs(ANSWER, source=part, kind=part, dimension=part, gap_b=[0.1, 3, 1, 0.1, 0.7, 10])
    values, errors = measure_pairs(pairs, _rewards(DIFFERENCE), "dev", DevFit(0.2))
    for sort in ("source", "dimension", "kind"):
        assert values[f"dev/{sort} x/without_ties"] == 1
        assert values[f"dev/{sort} y/without_ties"] == 0.25
        assert values[f"dev/{sort} y/with_ties"] == 1 / 3
        assert values[f"dev/{sort} x/num_decided"] == 2
    bins = [name.split("/")[1] for name in values if "/gap " in name and "num_pairs" in name]
    assert bins == ["gap <0.5", "gap 0.5-1", "gap 1-2", "gap >=2"]
    assert values["dev/gap >=2/without_ties"] == 0.75
    assert "dev/gap 0.5-1/without_ties" not in values  # a tie alone
    assert "dev/gap 1-2/without_ties" not in errors  # a single cluster
    assert "dev/source y/without_ties" in errors


def test_only_ties_leave_out_what_is_undefined():
    values, _ = measure_pairs(_pairs([0, 0]), _rewards([0.1, 0.3]), "test", DevFit(0.2, 1.0))
    assert values["test/pairs/with_ties"] == 0.5
    assert values["test/pairs/with_ties_oracle"] == 1
    assert not any(
        name.endswith(("without_ties", "log_loss", "ece", "brier", "bias")) for name in values
    )
    json.dumps(values, allow_nan=False)


def test_a_reward_that_is_nan_is_wrong_and_has_no_probability():
    values, _ = measure_pairs(_pairs([1, -1]), _rewards([np.nan, -1]), "test", DevFit(0, 1.0))
    assert values["test/pairs/without_ties"] == 0.5
    assert "test/pairs/log_loss" not in values
    rows = reward_rows(_pairs([1, -1]), _rewards([np.nan, -1]))
    assert rows[0]["predicted"] is None and rows[0]["reward_a"] is None
    ties = reward_rows(_pairs([1, -1]), _rewards([np.nan, -1]), None, np.ones(2))
    assert ties[0]["p_tie"] is None and ties[1]["p_tie"] > 0
    json.dumps(rows + ties, allow_nan=False)
    assert fit_on_dev(np.array([1, -1]), np.array([np.nan, 1]), np.ones(2)).temperature is None


def test_model_of_ties_has_a_log_loss_over_three_classes():
    """CA1: NLL at k = 3, d = 1 is .743668 for A, 2.214283 for B, .878510 for a tie."""
    pairs, log_k = _pairs([1, 1, -1, 0]), np.full(4, np.log(3))
    values, errors = measure_pairs(pairs, _rewards([1] * 4), "test", None, log_k)
    want = (2 * 0.743668 + 2.214283 + 0.878510) / 4
    assert values["test/pairs/log_loss_ties"] == pytest.approx(want, abs=1e-6)
    assert values["test/pairs/tie_probability"] == pytest.approx(0.415401, abs=1e-6)
    assert "test/pairs/log_loss_ties" in errors
    odds = np.log(0.475367 / 0.109232)
    want = (2 * np.log1p(np.exp(-odds)) + np.log1p(np.exp(odds))) / 3
    assert values["test/pairs/log_loss_raw"] == pytest.approx(want, abs=1e-5)
    (row, *_) = reward_rows(pairs, _rewards([1] * 4), None, log_k)
    assert [row["p_a"], row["p_b"], row["p_tie"]] == pytest.approx(
        [0.475367, 0.109232, 0.415401], abs=1e-6
    )


def test_correlations_count_a_video_once_and_skip_foreign_prompts():
    """Rewards of x, y, z rank as their scores do but for one exchange: tau 1/3, rho 1/2."""
    pairs = _pairs(
        [1, 1, 1, 1],
        video_a=["x", "x", "y", "x"],
        video_b=["y", "z", "z", "other"],
        kind=["same_prompt"] * 3 + ["mismatch"],
        score_bv=np.array([[3, 2], [3, 1], [2, 1], [3, 9.0]]),
    )
    reward = np.array([[0.9, 0.1], [0.9, 0.5], [0.1, 0.5], [0.9, 0.0]])
    values, _ = measure_pairs(pairs, reward, "test")
    for part in ("pairs", "source t2vqa"):
        assert values[f"test/{part}/kendall"] == pytest.approx(1 / 3)
        assert values[f"test/{part}/spearman"] == pytest.approx(1 / 2)
    assert "test/pairs/kendall_by_prompt" not in values
    two = dataclasses.replace(pairs, question=["q1", "q2", "q2", "q1"])
    values, _ = measure_pairs(two, reward, "test")
    # q1 has x over y, as scored; q2 has x, y, z, where y and z are exchanged.
    assert values["test/pairs/kendall_by_prompt"] == pytest.approx((1 + 1 / 3) / 2)
    none = dataclasses.replace(pairs, score_bv=np.full((4, 2), np.nan))
    assert not any("kendall" in name for name in measure_pairs(none, reward, "test")[0])


def test_dev_chooses_what_test_uses():
    fit = fit_on_dev(np.array([1, -1, 1, -1, 0]), np.array([2.0, -2, -2, -2, 0.5]))
    assert fit.eps == 0.5
    # Three of four right at distance 2: sigmoid(2 / T) = 3/4.
    assert fit.temperature == pytest.approx(2 / math.log(3))
    assert fit_on_dev(np.array([1, -1]), np.array([1.0, -2])) == DevFit(0.0, None)
    assert fit_on_dev(np.array([0]), np.array([1.0])) == DevFit(1.0, None)
    assert fit_on_dev(np.array([], int), np.array([])) == DevFit()
    assert fit_on_dev(np.array([1, -1]), np.array([np.nan, 1])).temperature is None


def test_rows_hold_what_is_needed_to_count_again():
    rows = reward_rows(_pairs(ANSWER), _rewards(DIFFERENCE), DevFit(0.2, 2.0))
    assert [row["predicted"] for row in rows] == ["A", "B", "B", "A", "tie", "tie"]
    assert np.mean([row["predicted"] == row["answer"] for row in rows]) == 0.5
    assert rows[0]["p_a"] == pytest.approx(1 / (1 + math.exp(-1)))
    assert list(rows[0])[:8] == [
        "pair_id", "source", "dimension", "kind", "question", "video_a", "video_b", "answer",
    ]  # fmt: skip
    single = reward_rows(_pairs([1]), np.array([[0.1, 0.0]], np.float32))
    assert single[0]["reward_a"] == 0.1


def test_exchanging_the_sides_changes_no_figure_but_the_bias():
    rng = np.random.default_rng(0)
    answer = rng.integers(-1, 2, 60)
    reward = np.round(rng.normal(size=(60, 2)), 1)
    pairs = _pairs(answer, source=rng.choice(["x", "y"], 60), gap_b=rng.uniform(0, 3, 60))
    swapped = dataclasses.replace(
        pairs, answer_b=-answer, video_a=pairs.video_b, video_b=pairs.video_a
    )
    first = measure_pairs(pairs, reward, "test", DevFit(0.3, 0.8))
    second = measure_pairs(swapped, reward[:, ::-1], "test", DevFit(0.3, 0.8))
    for one, other in zip(first, second, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            if not name.endswith(("/bias", "ece", "ece_raw")):  # bins hold other pairs
                assert one[name] == pytest.approx(other[name], abs=1e-12), name
    assert first[0]["test/pairs/bias"] == pytest.approx(-second[0]["test/pairs/bias"])


def _splits() -> dict[str, JudgedPairs]:
    """Generator g wins against h, three of four times in train."""
    train = _pairs([1, 1, -1, -1, 1], model_a=list("gghhh"), model_b=list("hhggg"))
    train = dataclasses.replace(train, answer_b=np.array([1, 1, -1, 1, 0], np.int8))
    dev = _pairs([1, -1, 0, 0, 1], model_a=list("ghghh"), model_b=list("hghhg"))
    test = _pairs([1, -1, 1, 0], model_a=list("ghhg"), model_b=["h", "g", "g", "unknown"])
    return {"train": train, "dev": dev, "test": test}


def test_generators_win_by_their_odds_in_train():
    odds = generator_odds(_splits()["train"])
    # g: 3 wins of 5 and a tie, so 3.5 + 1 against 1.5 + 1.
    assert odds["t2vqa", "overall", "g"] == pytest.approx(math.log(4.5 / 2.5))
    assert odds["t2vqa", "overall", "h"] == pytest.approx(math.log(2.5 / 4.5))
    foreign = dataclasses.replace(_splits()["train"], kind=["mismatch"] * 5)
    assert generator_odds(foreign) == {}


def test_baselines_by_hand():
    rows = {row.name: row for row in pair_baselines(_splits(), ["test"])}
    assert list(rows) == ["random", "always A", "generator prior"]
    values = {name: row.values for name, row in rows.items()}
    assert values["random"]["test/pairs/without_ties"] == 0.5
    assert values["random"]["test/pairs/log_loss"] == math.log(2)
    # Dev has 2 ties of 5: to call all of them ties is better than to guess, 2/5 against 3/10.
    assert values["random"]["test/pairs/with_ties"] == 1 / 4
    assert values["always A"]["test/pairs/without_ties"] == 2 / 3
    assert "test/pairs/log_loss_raw" not in values["always A"]
    assert values["generator prior"]["test/pairs/without_ties"] == 2 / 3
    assert "test/pairs/without_ties" in rows["generator prior"].errors
    unnamed = {
        split: dataclasses.replace(p, model_a=(), model_b=()) for split, p in _splits().items()
    }
    assert [row.name for row in pair_baselines(unnamed, ["test"])] == ["random", "always A"]
    alone = {"test": _splits()["test"]}
    assert "test/pairs/with_ties" not in pair_baselines(alone, ["test"])[0].values


def _print(rows) -> str:
    file = io.StringIO()
    render_pairs(rows, ["test"], Console(file=file))
    return file.getvalue()


def _cells(text: str, start: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.strip().startswith(start)]
    return line.strip().removeprefix(start).split()


def test_chance_has_no_accuracy_where_nothing_is_decided():
    random = pair_baselines({"test": _pairs([0, 0])}, ["test"])[0]
    assert random.name == "random" and not random.values


def test_tables_show_models_baselines_and_parts():
    pairs = _pairs(ANSWER, source=["x", "x", "y", "x", "y", "y"], kind=["native"] * 6)
    values, errors = measure_pairs(pairs, _rewards(DIFFERENCE), "test", DevFit(0.2, 2.0))
    errors = {"test/pairs/without_ties": 0.0123, "test/kind native/without_ties": 0.02}
    random = Row("random", {"test/pairs/without_ties": 0.5, "test/source y/without_ties": 0.5})
    text = _print([Row("model", values, errors), random])
    loss, ece = values["test/pairs/log_loss"], values["test/pairs/ece"]
    raw = values["test/pairs/log_loss_raw"]
    assert _cells(text, "model") == [
        "62.50", "±1.23", "50.00", "66.67", f"{loss:.4f}", f"{raw:.4f}", f"{100 * ece:.2f}",
        "100.00", "25.00",
    ]  # fmt: skip
    assert _cells(text, "random") == ["50.00", *"-----", "-", "50.00"]
    assert _cells(text, "kind native") == ["4", "62.50", "±2.00", "50.00", "66.67"]
    assert _cells(text, "gap unknown") == ["4", "62.50", "50.00", "66.67"]
    assert "dimension overall" in text


def test_reliability_is_written_where_there_is_one(tmp_path):
    rng = np.random.default_rng(0)
    logit = rng.normal(size=300)
    answer = np.where(rng.uniform(size=300) < 1 / (1 + np.exp(-logit)), 1, -1)
    files = tmp_path / "r.csv", tmp_path / "r.png"
    assert write_reliability(*files, _pairs(answer), _rewards(2 * logit), "test $", DevFit(0, 2.0))
    rows = list(csv.DictReader(files[0].read_text().splitlines()))
    assert len(rows) == 15 and {row["pairs"] for row in rows} == {"20"}
    low = 1 / (1 + math.exp(-logit.min()))
    assert float(rows[0]["low"]) == pytest.approx(low)
    assert files[1].read_bytes().startswith(b"\x89PNG")
    other = tmp_path / "no.csv", tmp_path / "no.png"
    assert not write_reliability(*other, _pairs([0]), _rewards([1]), "test")
    assert not other[0].exists()


def test_refuses_rewards_of_other_pairs():
    with pytest.raises(ValueError, match="2 pairs and 3 pairs of rewards"):
        measure_pairs(_pairs([1, 1]), np.zeros((3, 2)), "test")
    assert difference(np.float32([[1, 3]])).tolist() == [-2]
