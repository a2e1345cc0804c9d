import numpy as np
import pytest

from jaxvsa.core.errors import UserError
from jaxvsa.data.plan import BatchPlan
from jaxvsa.data.sizes import Axis

pytestmark = pytest.mark.smoke

NEED = np.array([3, 9, 2, 5, 4])


def longest(need_b, **more):
    return {"l": Axis(np.asarray(need_b), False, 1.0, **more)}


def make(**changes):
    arguments = {"axes": longest(NEED), "batch_size": 2} | changes
    return BatchPlan(**arguments)


def in_order(**changes):
    return make(order=np.arange(5), **changes)


def drawn(plan, epoch):
    """Examples of one epoch in order, without the invalid rows."""
    first = epoch * plan.steps_per_epoch
    steps = [plan[first + step] for step in range(plan.steps_per_epoch)]
    return np.concatenate([planned.index_b[planned.valid_b] for planned in steps])


def test_plan_in_a_fixed_order_equals_the_hand_made_one():
    plan = make(order=np.array([1, 0, 2, 3, 4]))
    assert len(plan) == plan.steps_per_epoch == 3
    planned = [plan[step] for step in range(3)]
    rows = [(p.index_b.tolist(), p.valid_b.tolist(), p.sizes) for p in planned]
    assert rows == [
        ([1, 0], [True, True], {"l": 9}),
        ([2, 3], [True, True], {"l": 5}),
        ([4, 0], [True, False], {"l": 4}),
    ]
    assert plan[0].index_b.dtype == np.int64 and plan[0].valid_b.dtype == bool


def test_packed_axis_is_the_sum_of_a_group_and_never_larger_than_its_rectangle():
    """41 + 40 words are 3 blocks of 32, but the rows fill 2 x 41; 7 are one block, of 2 x 33."""
    need_b = np.array([41, 40, 3, 4])
    axes = {
        "n": Axis(need_b, True, 1.0, 32, within="l"),
        "l": Axis(need_b, False, 1.0, 32, 1, 41),
    }
    plan = BatchPlan(axes, 2, order=np.arange(4))
    assert [plan[step].sizes for step in (0, 1)] == [{"n": 82, "l": 41}, {"n": 32, "l": 33}]
    whole = BatchPlan(axes, 4, order=np.arange(4))
    assert whole[0].sizes == {"n": 96, "l": 41}
    parted = BatchPlan(axes, 4, order=np.array([2, 0, 3, 1]), groups=2)
    assert parted[0].sizes == {"n": 64, "l": 41}
    common = BatchPlan(axes, 2, order=np.arange(4), shapes=1)
    assert common[1].sizes == {"n": 82, "l": 41}


def test_common_shape_of_a_rectangle_and_longer_rows_is_whole_blocks_again():
    need_b = np.array([33, 33, 40, 3])
    axes = {"n": Axis(need_b, True, 1.0, 32, within="l"), "l": Axis(need_b, False, 1.0, 8, 1)}
    alone = BatchPlan(axes, 2, order=np.arange(4), shapes=2)
    assert [alone[step].sizes for step in (0, 1)] == [{"n": 66, "l": 33}, {"n": 64, "l": 41}]
    common = BatchPlan(axes, 2, order=np.arange(4), shapes=1)
    assert common[0].sizes == common[1].sizes == {"n": 82, "l": 41}
    longer = {**axes, "l": Axis(need_b, False, 1.0, 32, 1)}
    common = BatchPlan(longer, 2, order=np.arange(4), shapes=1)
    assert common[0].sizes == common[1].sizes == {"n": 96, "l": 65}


def test_plan_order_is_the_same_in_every_version_of_numpy():
    plan = BatchPlan(longest(np.ones(10, int)), 10, seed=3, num_steps=2)
    assert plan[0].index_b.tolist() == [6, 1, 8, 5, 2, 7, 9, 4, 3, 0]
    assert plan[1].index_b.tolist() == [9, 7, 8, 3, 5, 6, 4, 0, 2, 1]


@pytest.mark.parametrize("num_examples,batch_size", [(1, 1), (5, 2), (6, 2), (3, 8), (101, 16)])
def test_every_epoch_shows_every_example_once(num_examples, batch_size):
    plan = BatchPlan(longest(np.arange(num_examples) % 7 + 1), batch_size, seed=1, num_steps=10**6)
    for epoch in (0, 1, 7):
        assert sorted(drawn(plan, epoch)) == list(range(num_examples))


def test_plan_does_not_depend_on_the_order_of_access():
    forward, backward = make(seed=5, num_steps=30), make(seed=5, num_steps=30)
    there = [(forward[step].index_b.tolist(), forward[step].sizes) for step in range(30)]
    back = [(backward[s].index_b.tolist(), backward[s].sizes) for s in reversed(range(30))]
    assert there == back[::-1]
    other = make(seed=6, num_steps=30)
    assert [index for index, _ in there] != [other[step].index_b.tolist() for step in range(30)]


def test_epochs_differ_and_every_order_is_about_equally_likely():
    plan = BatchPlan(longest(np.ones(3, int)), 3, num_steps=6000)
    orders = [tuple(plan[step].index_b.tolist()) for step in range(6000)]
    counts = np.array([orders.count(order) for order in set(orders)])
    assert len(counts) == 6
    assert np.sum((counts - 1000) ** 2 / 1000) < 20.5  # chi squared, 5 degrees: p = 0.001


def test_a_longer_plan_draws_the_same_and_an_epoch_does_not_depend_on_the_shapes():
    fine, coarse = (make(shapes=most, seed=2, num_steps=12) for most in (3, 1))
    for step in range(12):
        np.testing.assert_array_equal(fine[step].index_b, coarse[step].index_b)
        assert NEED[fine[step].index_b].max() <= fine[step].sizes["l"] <= 9
        assert coarse[step].sizes["l"] == 9
    longer = make(shapes=3, seed=2, num_steps=30)
    for step in range(12):
        assert longer[step].sizes == fine[step].sizes
        np.testing.assert_array_equal(longer[step].index_b, fine[step].index_b)


def test_shapes_count_the_steps_that_have_them():
    axes = longest(NEED) | {"t": Axis(np.array([1, 1, 6, 6, 1]), False, 1.0)}
    assert in_order(axes=axes).shapes() == {(4, 1): 1, (5, 6): 1, (9, 1): 1}
    assert in_order(axes=axes, shapes=1).shapes() == {(9, 6): 3}
    plan = make(axes=axes, seed=4, num_steps=50)
    counts = plan.shapes()
    assert sum(counts.values()) == 50
    for shape, count in counts.items():
        assert count == sum(tuple(plan[s].sizes.values()) == shape for s in range(50))


def test_a_planned_batch_is_the_readers_own():
    plan = in_order()
    plan[0].index_b[:] = 4
    plan[0].sizes["l"] = 0
    assert plan[0].index_b.tolist() == [0, 1] and plan[0].sizes == {"l": 9}


def test_plan_ends():
    plan = make(num_steps=4)
    for step in (4, -1):
        with pytest.raises(IndexError, match="outside of the plan of 4 steps"):
            plan[step]


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"batch_size": 0}, "batch size is 0"),
        ({"groups": 3, "batch_size": 4}, "a batch of 4 cannot be split into 3 parts"),
        ({"shapes": 0}, "the number of batch shapes is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"axes": longest(NEED[:0])}, "no examples"),
        ({"axes": {}}, "no examples"),
    ],
)
def test_plan_refuses(changes, message):
    with pytest.raises(UserError, match=message):
        make(**changes)


def test_axes_must_speak_of_the_same_examples():
    with pytest.raises(ValueError, match=r"different numbers of examples: \{'l': 5, 't': 4\}"):
        make(axes=longest(NEED) | {"t": Axis(NEED[:4], False, 1.0)})


def test_grouping_keeps_every_example_once_and_makes_batches_alike():
    rng = np.random.default_rng(0)
    need_b = rng.integers(1, 100, 103)
    axes = {"l": Axis(need_b, False, 1.0)}
    how = {"seed": 3, "num_steps": 26, "shapes": 4}
    plain = BatchPlan(axes, 8, **how)
    grouped = BatchPlan(axes, 8, sort_b=need_b, window=4, **how)
    spread = {name: [] for name in ("plain", "grouped")}
    for epoch in (0, 1):
        assert sorted(drawn(grouped, epoch)) == list(range(103))
        for name, plan in (("plain", plain), ("grouped", grouped)):
            steps = [plan[13 * epoch + step].index_b for step in range(12)]
            spread[name] += [np.ptp(need_b[index_b]) for index_b in steps]
    assert np.mean(spread["grouped"]) < 0.5 * np.mean(spread["plain"])
    # A window holds the same examples with and without grouping, in whole batches that move.
    window = [plan_window(plan) for plan in (plain, grouped)]
    assert window[0] == window[1]
    means = [need_b[grouped[13 + step].index_b].mean() for step in range(4)]
    assert means != sorted(means)
    with pytest.raises(UserError, match="the window is 0 batches"):
        BatchPlan(axes, 8, sort_b=need_b, window=0)


def plan_window(plan):
    return sorted(np.concatenate([plan[step].index_b for step in range(4)]).tolist())


STRATA = np.repeat([0, 1, 3], [80, 18, 2])


def stratified(power, **changes):
    return BatchPlan(longest(np.ones(100, int)), 16, strata_b=STRATA, power=power, **changes)


def test_power_one_is_the_plain_draw_bit_for_bit():
    plain = BatchPlan(longest(np.ones(100, int)), 16, seed=7, num_steps=30)
    same = stratified(1.0, seed=7, num_steps=30)
    for step in range(30):
        np.testing.assert_array_equal(same[step].index_b, plain[step].index_b)
        np.testing.assert_array_equal(same[step].valid_b, plain[step].valid_b)


@pytest.mark.parametrize(
    ("power", "share"),
    # sqrt of 80, 18, 2 are 8.944, 4.243, 1.414 of 14.601: 61.26, 29.06, 9.69 of 100 rows. Of the
    # thirds that power 0 gives, the first stratum gets what is left.
    [(0.5, [61, 29, 0, 10]), (0.0, [34, 33, 0, 33]), (2.0, [95, 5, 0, 0])],
)
def test_strata_have_their_share_of_every_epoch(power, share):
    plan = stratified(power, num_steps=70)
    assert plan.steps_per_epoch == 7
    for epoch in (0, 1, 9):
        found = drawn(plan, epoch)
        assert len(found) == 100
        assert np.bincount(STRATA[found], minlength=4).tolist() == share


def test_examples_of_a_stratum_are_drawn_equally_often():
    """61 of 80, 29 of 18 and 10 of 2 an epoch: after any number of them the counts differ by 1."""
    plan, total = stratified(0.5, num_steps=7 * 40), np.zeros(100, int)
    members = [np.flatnonzero(number == STRATA) for number in (0, 1, 3)]
    for epoch in range(40):
        total += np.bincount(drawn(plan, epoch), minlength=100)
        assert all(np.ptp(total[of_s]) <= 1 for of_s in members)
    assert [total[of_s].sum() for of_s in members] == [61 * 40, 29 * 40, 10 * 40]


def test_rounds_of_a_stratum_are_permutations_of_their_own():
    """80 epochs are 61 whole rounds: the next would show the same 61 if all rounds were equal."""
    plan = stratified(0.5, num_steps=7 * 81)
    first, again = (set(drawn(plan, epoch)) & set(range(80)) for epoch in (0, 80))
    assert len(first) == len(again) == 61 and first != again


def test_stratified_draws_depend_on_seed_and_step_alone():
    forward, backward = (stratified(0.5, seed=5, num_steps=40) for _ in range(2))
    there = [forward[step].index_b.tolist() for step in range(40)]
    assert there == [backward[step].index_b.tolist() for step in reversed(range(40))][::-1]
    longer = stratified(0.5, seed=5, num_steps=90)
    assert there == [longer[step].index_b.tolist() for step in range(40)]
    assert there != [stratified(0.5, seed=6, num_steps=40)[s].index_b.tolist() for s in range(40)]
    assert all(len(set(STRATA[index])) > 1 for index in there[:6])  # mixed
    # Raw words of Philox, the same in every version of numpy.
    small = BatchPlan(longest(np.ones(6, int)), 6, strata_b=np.repeat([0, 1], [5, 1]), power=0.0)
    assert small[0].index_b.tolist() == [1, 0, 2, 5, 5, 5]


def test_fixed_order_has_no_strata_and_packed_axes_hold_repeated_examples():
    order = np.arange(100)[::-1].copy()
    assert drawn(stratified(0.0, order=order), 0).tolist() == order.tolist()
    need_b = np.array([50, 1, 1, 1, 1, 1, 1, 1])
    plan = BatchPlan(
        {"n": Axis(need_b, True, 1.0)}, 4, strata_b=(need_b < 50).astype(int), power=0.0,
        num_steps=40,
    )  # fmt: skip
    for step in range(40):
        assert need_b[plan[step].index_b].sum() <= plan[step].sizes["n"] <= 200
    assert max(plan[step].sizes["n"] for step in range(40)) > 50 + 3


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"power": -1.0}, UserError, "the power of the strata is -1.0; it must be at least 0"),
        ({"power": float("nan")}, UserError, "the power of the strata is nan"),
        ({"strata_b": STRATA[:4]}, ValueError, "4 numbers of strata, from 0, for 5 examples"),
        ({"strata_b": np.array([0, 0, -1, 0, 0])}, ValueError, "from 0, for 5 examples"),
    ],
)
def test_strata_refused(changes, error, message):
    with pytest.raises(error, match=message):
        make(**{"power": 0.5, "strata_b": np.zeros(5, int)} | changes)
