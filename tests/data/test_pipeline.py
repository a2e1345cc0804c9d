import json

import numpy as np
import pytest

from jaxvsa.core.errors import UserError
from jaxvsa.data.pipeline import batches, iterate
from jaxvsa.data.plan import BatchPlan
from jaxvsa.data.sizes import Axis

pytestmark = pytest.mark.smoke

NEED = np.arange(23) % 6 + 1


class Rows:
    """Example i is `need[i]` times the number i, padded with -1; a group is its examples."""

    def batch(self, index_b, valid_b, sizes, groups):
        position_l = np.arange(sizes["l"])
        ids_bl = np.where(position_l < NEED[index_b][:, None], index_b[:, None], -1)
        return {"ids_bl": ids_bl, "valid_b": valid_b, "group_gr": index_b.reshape(groups, -1)}


def plan(num_steps=20, groups=1):
    axes = {"l": Axis(NEED, False, 1.0, 3)}
    return BatchPlan(axes, 4, groups=groups, seed=7, num_steps=num_steps)


def assert_same(got, want):
    assert len(got) == len(want) > 0
    for left, right in zip(got, want, strict=True):
        assert left.keys() == right.keys()
        for name in left:
            np.testing.assert_array_equal(left[name], right[name], strict=True)


def test_batches_are_the_planned_examples():
    dataset = batches(plan(), Rows())
    assert len(dataset) == 20
    for step in (0, 19, 5):
        planned = plan()[step]
        assert dataset[step]["ids_bl"].shape == (4, planned.sizes["l"])
        np.testing.assert_array_equal(dataset[step]["ids_bl"][:, 0], planned.index_b)
        np.testing.assert_array_equal(dataset[step]["valid_b"], planned.valid_b)


def test_accumulation_only_folds_the_first_axis():
    whole, folded = batches(plan(), Rows()), batches(plan(groups=2), Rows(), accumulate=2)
    length = plan()[3].sizes["l"]
    assert folded[3]["ids_bl"].shape == (2, 2, length) and folded[3]["valid_b"].shape == (2, 2)
    np.testing.assert_array_equal(folded[3]["ids_bl"].reshape(4, length), whole[3]["ids_bl"])
    assert folded[3]["group_gr"].shape == (2, 1, 2)
    np.testing.assert_array_equal(folded[3]["group_gr"].ravel(), whole[3]["group_gr"].ravel())
    assert batches(plan(), Rows(), accumulate=1)[3]["ids_bl"].shape == (1, 4, length)


def test_shards_by_hand():
    """Micro-batches of two rows, each cut into two shards of one: rows 0, 2 here and 1, 3 there."""
    index = plan()[2].index_b
    first, second = (batches(plan(groups=4), Rows(), 2, ((n,), 2))[2] for n in (0, 1))
    assert first["group_gr"].tolist() == [[[index[0]]], [[index[2]]]]
    assert second["group_gr"].tolist() == [[[index[1]]], [[index[3]]]]
    both = batches(plan(groups=4), Rows(), 2, ((0, 1), 2))[2]
    assert both["group_gr"].tolist() == [[[index[0]], [index[1]]], [[index[2]], [index[3]]]]
    last = batches(plan(groups=2), Rows(), shards=((1,), 2))[2]
    assert last["group_gr"].tolist() == [index[2:].tolist()]
    assert last["valid_b"].shape == (2,)


@pytest.mark.parametrize("num_threads", [0, 3])
def test_iteration_is_in_order_and_ends(num_threads):
    dataset = batches(plan(), Rows())
    iterator = iterate(dataset, num_threads=num_threads)
    assert_same(list(iterator), [dataset[step] for step in range(20)])


@pytest.mark.parametrize("taken", [0, 1, 7, 19])
@pytest.mark.parametrize("threads", [(0, 2), (2, 0), (2, 2)])
def test_interruption_is_invisible(taken, threads):
    dataset = batches(plan(), Rows())
    first = iterate(dataset, num_threads=threads[0])
    for _ in range(taken):
        next(first)
    state = json.loads(json.dumps(first.get_state()))
    again = iterate(batches(plan(), Rows()), state, num_threads=threads[1])
    assert_same(list(again), list(first))


def test_a_longer_plan_continues_the_shorter_one():
    first = iterate(batches(plan(8), Rows()))
    list(first)
    rest = list(iterate(batches(plan(11), Rows()), first.get_state()))
    assert_same(rest, [batches(plan(), Rows())[step] for step in (8, 9, 10)])


def test_an_error_of_the_examples_reaches_the_reader():
    class Broken:
        def batch(self, index_b, valid_b, sizes, groups):
            raise UserError("features of video x are gone")

    with pytest.raises(UserError, match="video x are gone"):
        next(iterate(batches(plan(), Broken())))


@pytest.mark.parametrize(
    ("accumulate", "count", "message"),
    [(2, 1, "1 groups, but 2 micro-batches of 1 shards"), (0, 4, "1 micro-batches of 4 shards")],
)
def test_plan_of_other_groups_is_refused(accumulate, count, message):
    with pytest.raises(ValueError, match=message):
        batches(plan(), Rows(), accumulate, ((0,), count))


@pytest.mark.parametrize("groups", [3, 8])
def test_groups_that_do_not_divide_are_refused(groups):
    with pytest.raises(UserError, match=f"a batch of 4 cannot be split into {groups} parts"):
        plan(groups=groups)
