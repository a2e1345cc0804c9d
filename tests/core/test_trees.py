"""Trees by path: totality of rules, exact inverses, digests computed by hand."""

import zlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvsa.core import trees
from jaxvsa.core.errors import UserError


class Moments(NamedTuple):
    mu: dict
    nu: dict


def small():
    return {
        "heads": {"opinion": {"kernel": np.ones((2, 3), np.float32), "bias": np.zeros(3)}},
        "text": {"kernel": np.arange(4, dtype=np.int32)},
    }


def equal(left, right):
    return jax.tree.structure(left) == jax.tree.structure(right) and jax.tree.all(
        jax.tree.map(np.array_equal, left, right)
    )


def test_named_paths_of_dicts_tuples_and_named_tuples():
    tree = {"opt": (Moments(mu={"w": 1}, nu={"w": 2}), [3]), "none": None}
    assert trees.named(tree) == {"opt/0/mu/w": 1, "opt/0/nu/w": 2, "opt/1/0": 3}


def test_named_refuses_two_leaves_with_one_path():
    with pytest.raises(ValueError, match="have the path 'a/b'"):
        trees.named({"a/b": 1, "a": {"b": 2}})


def test_nest_is_the_inverse_of_named():
    assert equal(trees.nest(trees.named(small())), small())


@pytest.mark.parametrize("paths", [("a", "a/b"), ("a/b", "a")])
def test_nest_refuses_a_leaf_that_is_a_branch(paths):
    with pytest.raises(ValueError, match="leaf"):
        trees.nest({path: {} for path in paths})


def test_split_first_match_wins():
    learn, held = trees.split(
        small(), ((r"heads/.*/bias", False), (r"heads/.*", True), (".*", False))
    )
    assert list(trees.named(learn)) == ["heads/opinion/kernel"]
    assert list(trees.named(held)) == ["heads/opinion/bias", "text/kernel"]


def test_split_matches_the_whole_path():
    with pytest.raises(UserError, match="no rule decides 'heads/opinion/bias'"):
        trees.split(small(), (("heads", True), ("text/.*", False)))


@pytest.mark.parametrize(
    "rules", [((".*", True),), ((".*", False),), ((".*/kernel", True), (".*", False))]
)
def test_join_is_the_inverse_of_split(rules):
    learn, held = trees.split(small(), rules)
    assert equal(trees.join(learn, held), small())
    assert trees.num_values(learn) + trees.num_values(held) == 13


def test_join_works_inside_a_traced_function():
    learn, held = trees.split(small(), (("heads/.*", True), (".*", False)))

    def total(learn, held):
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(trees.join(learn, held)))

    assert jax.jit(total)(learn, held) == 12.0


def test_split_names_the_rule_that_decides_nothing():
    with pytest.raises(UserError, match=r"rule 'head/.*' decides nothing: it matches no path"):
        trees.split(small(), (("head/.*", True), (".*", False)))
    with pytest.raises(UserError, match=r"rule 'text/.*' decides nothing: earlier rules"):
        trees.split(small(), ((".*", False), ("text/.*", True)))
    with pytest.raises(UserError, match=r"rule '\(' is not a regular expression"):
        trees.split(small(), (("(", True),))


def test_join_refuses_a_path_in_both_trees():
    with pytest.raises(ValueError, match="'text/kernel' is in both trees"):
        trees.join({"text": {"kernel": 1}}, {"text": {"kernel": 2}})


def test_sizes_of_arrays_and_abstract_arrays():
    tree = {"a": jax.ShapeDtypeStruct((3, 5), jnp.bfloat16), "b": np.zeros((), np.float64)}
    assert (trees.num_values(tree), trees.num_bytes(tree)) == (16, 38)


def test_digest_is_crc32_of_dtype_shape_and_bytes():
    array = np.array([[1, 2, 3]], np.int16)
    want = zlib.crc32(b"int16(1, 3)\x01\x00\x02\x00\x03\x00")
    assert trees.digests({"x": array}) == {"x": f"{want:08x}"}


def test_digest_tells_dtype_shape_and_one_bit_apart():
    zeros = np.zeros((2, 2), np.float32)
    flipped = zeros.copy()
    flipped.view(np.uint8)[1, 3] ^= 1
    others = [zeros.astype(np.int32), zeros.reshape(4), zeros.astype(jnp.bfloat16), flipped]
    assert len(set(trees.digests([zeros, *others]).values())) == 5


def test_digest_does_not_depend_on_where_the_array_lies():
    host = np.arange(24, dtype=np.float32).reshape(4, 6)
    mesh = jax.make_mesh((len(jax.devices()),), ("data",))
    spread = jax.device_put(host, jax.sharding.NamedSharding(mesh, jax.P("data")))
    transposed = np.asfortranarray(host)
    assert len(set(trees.digests([host, spread, jnp.asarray(host), transposed]).values())) == 1


def test_digest_of_a_typed_key_is_that_of_its_data():
    key = jax.random.key(7)
    data = np.asarray(jax.random.key_data(key))
    assert trees.digests({"rng": key}) == trees.digests({"rng": data})
