import numpy as np
import pytest

from jaxvsa.core.errors import UserError
from jaxvsa.data.plan import BatchPlan

pytestmark = pytest.mark.smoke

NEED = np.array([3, 9, 2, 5, 4])
RUNGS = (4, 8, 16)


def make(**changes):
    arguments = {"needs": {"l": NEED}, "rungs": {"l": RUNGS}, "batch_size": 2} | changes
    return BatchPlan(**arguments)


def drawn(plan, epoch):
    """Examples of one epoch in order, without the invalid rows."""
    first = epoch * plan.steps_per_epoch
    steps = [plan[first + step] for step in range(plan.steps_per_epoch)]
    return np.concatenate([planned.index_b[planned.valid_b] for planned in steps])


def test_plan_without_shuffle_equals_the_hand_made_one():
    plan = make(shuffle=False)
    assert len(plan) == plan.steps_per_epoch == 3
    planned = [plan[step] for step in range(3)]
    rows = [(p.index_b.tolist(), p.valid_b.tolist(), p.sizes) for p in planned]
    assert rows == [
        ([0, 1], [True, True], {"l": 16}),
        ([2, 3], [True, True], {"l": 8}),
        ([4, 0], [True, False], {"l": 4}),
    ]
    assert plan[0].index_b.dtype == np.int64 and plan[0].valid_b.dtype == bool


def test_plan_order_is_the_same_in_every_version_of_numpy():
    plan = BatchPlan({"l": np.ones(10, int)}, {"l": (1,)}, 10, seed=3, num_steps=2)
    assert plan[0].index_b.tolist() == [6, 1, 8, 5, 2, 7, 9, 4, 3, 0]
    assert plan[1].index_b.tolist() == [9, 7, 8, 3, 5, 6, 4, 0, 2, 1]


@pytest.mark.parametrize("num_examples,batch_size", [(1, 1), (5, 2), (6, 2), (3, 8), (101, 16)])
def test_every_epoch_shows_every_example_once(num_examples, batch_size):
    need = np.arange(num_examples) % 7 + 1
    plan = BatchPlan({"t": need}, {"t": (7,)}, batch_size, seed=1, num_steps=10**6)
    for epoch in (0, 1, 7):
        assert sorted(drawn(plan, epoch)) == list(range(num_examples))


def test_plan_does_not_depend_on_the_order_of_access():
    forward, backward = make(seed=5, num_steps=30), make(seed=5, num_steps=30)
    there = [forward[step].index_b.tolist() for step in range(30)]
    back = [backward[step].index_b.tolist() for step in reversed(range(30))]
    assert there == back[::-1]
    assert there != [make(seed=6, num_steps=30)[step].index_b.tolist() for step in range(30)]


def test_epochs_differ_and_every_order_is_about_equally_likely():
    plan = BatchPlan({"l": np.ones(3, int)}, {"l": (1,)}, 3, num_steps=6000)
    orders = [tuple(plan[step].index_b.tolist()) for step in range(6000)]
    counts = np.array([orders.count(order) for order in set(orders)])
    assert len(counts) == 6
    assert np.sum((counts - 1000) ** 2 / 1000) < 20.5  # chi squared, 5 degrees: p = 0.001


def test_rungs_do_not_change_which_examples_are_drawn():
    fine, coarse = (make(rungs={"l": r}, seed=2, num_steps=12) for r in ((5, 9), (32,)))
    for step in range(12):
        np.testing.assert_array_equal(fine[step].index_b, coarse[step].index_b)
        need = NEED[fine[step].index_b].max()
        assert fine[step].sizes["l"] == (5 if need <= 5 else 9)
        assert coarse[step].sizes["l"] == 32


def test_shapes_count_the_steps_that_have_them():
    needs = {"l": NEED, "t": np.array([1, 1, 6, 6, 1])}
    rungs = {"t": (1, 6), "l": RUNGS}
    assert make(needs=needs, rungs=rungs, shuffle=False).shapes() == {
        (4, 1): 1,
        (8, 6): 1,
        (16, 1): 1,
    }
    plan = make(needs=needs, rungs=rungs, seed=4, num_steps=50)
    counts = plan.shapes()
    assert sum(counts.values()) == 50
    for shape, count in counts.items():
        assert count == sum(tuple(plan[s].sizes.values()) == shape for s in range(50))


def test_a_planned_batch_is_the_readers_own():
    plan = make(shuffle=False)
    plan[0].index_b[:] = 4
    assert plan[0].index_b.tolist() == [0, 1]


def test_plan_ends():
    plan = make(num_steps=4)
    for step in (4, -1):
        with pytest.raises(IndexError, match="outside of the plan of 4 steps"):
            plan[step]


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"rungs": {"l": (4, 4, 16)}}, r"\(4, 4, 16\); they must be positive and strictly"),
        ({"rungs": {"l": (0, 16)}}, "must be positive"),
        ({"rungs": {"l": ()}}, "must be positive"),
        ({"rungs": {"l": (4, 8)}}, r"'l' are \(4, 8\); the longest example needs 9"),
        ({"limits": {"l": 32}}, "the last one must be the limit of the axis, 32"),
        ({"rungs": {"l": RUNGS, "t": (2,)}}, r"axes \['l', 't'\], the data has \['l'\]"),
        ({"batch_size": 0}, "batch size is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"needs": {"l": NEED[:0]}}, "no examples"),
    ],
)
def test_plan_refuses(changes, message):
    with pytest.raises(UserError, match=message):
        make(**changes)
