import numpy as np
import pytest

from jaxvsa.data.plan import BatchPlan
from jaxvsa.data.sizes import Axis, choose_shapes, cover

pytestmark = pytest.mark.smoke


def test_sizes_of_the_longest_and_of_the_sum_by_hand():
    need_b = np.array([3, 9, 2, 5])
    index_sgr = np.array([[[0, 1], [2, 3]], [[2, 2], [0, 3]]])  # batches, groups, rows
    assert Axis(need_b, False, 1.0).sizes(index_sgr).tolist() == [9, 5]
    assert Axis(need_b, True, 1.0).sizes(index_sgr).tolist() == [12, 8]  # the larger group
    assert Axis(need_b, True, 1.0, unit=8).sizes(index_sgr).tolist() == [16, 8]


def test_examples_of_one_owner_are_counted_once_in_a_group():
    need_b, owner_b = np.array([4, 4, 7, 1, 4]), np.array([5, 5, 2, 9, 5])
    axis = Axis(need_b, True, 1.0, owner_b=owner_b)
    index_sgr = np.array([[[0, 2, 1, 4]], [[3, 0, 0, 3]], [[2, 3, 2, 1]]])
    assert axis.sizes(index_sgr).tolist() == [11, 5, 12]
    parted = index_sgr.reshape(3, 2, 2)  # not shared between groups
    assert axis.sizes(parted).tolist() == [11, 5, 11]
    assert need_b.tolist() == [4, 4, 7, 1, 4]


def test_rounding_by_hand():
    size = np.array([0, 1, 32, 33, 34, 65, 66])
    assert Axis(size, True, 1.0, 32).round(size).tolist() == [32, 32, 32, 64, 64, 96, 96]
    longest = Axis(size, False, 1.0, 32, 1, 70)
    assert longest.round(size).tolist() == [33, 33, 33, 33, 65, 65, 70]


def test_largest_by_hand():
    need_b = np.array([3, 9, 2, 5])
    assert Axis(need_b, False, 1.0).largest(2) == 9
    assert Axis(need_b, True, 1.0).largest(2) == 14
    assert Axis(need_b, True, 1.0, 4).largest(3) == 20
    assert Axis(need_b, True, 1.0).largest(6) == 19 + 2 * 9  # what fills up may be the longest


def test_shapes_by_hand():
    """Three shapes for two: the pair that is nearest is merged, counted by how often it occurs."""
    need_sa = np.array([[10, 1], [20, 1], [28, 1]])
    assert choose_shapes(need_sa, np.array([1.0, 0.0]), 3).tolist() == need_sa.tolist()
    assert choose_shapes(need_sa, np.array([1.0, 0.0]), 2).tolist() == [[10, 1], [28, 1]]
    often = np.concatenate([need_sa, np.repeat(need_sa[1:2], 3, axis=0)])
    assert choose_shapes(often, np.array([1.0, 0.0]), 2).tolist() == [[20, 1], [28, 1]]
    assert choose_shapes(need_sa, np.array([1.0, 0.0]), 1).tolist() == [[28, 1]]
    # What was merged counts for all its batches: 11 holds two, so that 30 goes to 33 first.
    line = np.array([[10], [11], [13], [30], [33]])
    assert choose_shapes(line, np.ones(1), 3).tolist() == [[11], [13], [33]]
    # Merging covers every axis, and what an axis costs is its weight.
    crossed = np.array([[1, 4], [4, 1], [4, 4]])
    assert choose_shapes(crossed, np.array([9.0, 1.0]), 2).tolist() == [[1, 4], [4, 4]]
    assert choose_shapes(crossed, np.array([1.0, 9.0]), 2).tolist() == [[4, 1], [4, 4]]


def test_cover_takes_the_cheapest_that_is_large_enough():
    shape_ka = np.array([[2, 9], [5, 3], [9, 9]])
    need_sa = np.array([[2, 2], [3, 3], [1, 9], [3, 4]])
    assert cover(need_sa, shape_ka).tolist() == [[2, 9], [5, 3], [2, 9], [9, 9]]
    with pytest.raises(ValueError, match=r"no shape of \[\[2, 9\], .* is large enough"):
        cover(np.array([[10, 1]]), shape_ka)


def random_needs(seed):
    """Needs of three axes that belong together, with a long tail."""
    rng = np.random.default_rng(seed)
    text_s = np.ceil(rng.lognormal(3, 0.6, 700)).astype(int)
    return np.stack([17 * text_s + rng.integers(0, 60, 700), text_s, rng.integers(50, 180, 700)], 1)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("most", [1, 2, 4, 8])
def test_shapes_cover_all_and_pay_for_themselves(seed, most):
    need_sa, weight_a = random_needs(seed), np.array([0.6, 0.1, 0.3])
    shape_ka = choose_shapes(need_sa, weight_a, most)
    assert 1 <= len(shape_ka) <= most
    covered_sa = cover(need_sa, shape_ka)
    assert (covered_sa >= need_sa).all()
    cost_a = weight_a / need_sa.mean(axis=0)
    common = (need_sa.max(axis=0) @ cost_a) * len(need_sa)
    assert (covered_sa @ cost_a).sum() <= common * 1.000001
    if most == 8:  # and they are worth having
        assert (covered_sa @ cost_a).sum() < 0.6 * common


def test_shapes_are_deterministic_and_do_not_depend_on_the_order_of_the_batches():
    need_sa, weight_a = random_needs(5), np.array([0.6, 0.1, 0.3])
    want = choose_shapes(need_sa, weight_a, 5)
    np.testing.assert_array_equal(choose_shapes(need_sa, weight_a, 5), want)
    order = np.random.default_rng(0).permutation(len(need_sa))
    np.testing.assert_array_equal(choose_shapes(need_sa[order], weight_a, 5), want)


@pytest.mark.parametrize(("groups", "shapes"), [(1, 1), (1, 3), (2, 2), (4, 4)])
def test_no_epoch_needs_more_than_the_largest_shape(groups, shapes):
    """And each planned size holds its batch, in one of a few shapes, of whole blocks or rows."""
    rng = np.random.default_rng(groups)
    need_b = np.minimum(np.ceil(rng.lognormal(2.5, 1.0, 45)).astype(int), 41)
    axes = {
        "n": Axis(need_b, True, 0.6, 32, within="l"),
        "l": Axis(need_b, False, 0.1, 32, 1, 41),
    }
    plan = BatchPlan(axes, 8, groups=groups, shapes=shapes, seed=3, num_steps=300 * 6)
    rows, seen = 8 // groups, set()
    for step in range(len(plan)):
        planned = plan[step]
        n, longest = planned.sizes["n"], planned.sizes["l"]
        need_gr = need_b[planned.index_b].reshape(groups, rows)
        assert need_gr.sum(axis=1).max() <= n <= rows * longest
        assert need_gr.max() <= longest
        assert n % 32 == 0 or n == rows * longest
        seen.add((n, longest))
    assert set(plan.shapes()) == seen
    assert len(seen) <= shapes
    tops = [axis.largest(rows) for axis in axes.values()]
    assert max(n for n, _ in seen) <= tops[0] and max(longest for _, longest in seen) <= tops[1]
