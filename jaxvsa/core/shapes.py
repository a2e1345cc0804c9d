"""Array names carry their dimensions; `bind_dims` checks that the arrays agree with the names."""

from typing import Any

import numpy as np


def bind_dims(**arrays: Any) -> dict[str, int]:
    """Reads the size of every dimension from the suffixes of the argument names.

    `video_btf` has the axes b, t and f: one letter per axis, after the last underscore. Works on
    numpy and JAX arrays, tracers and `ShapeDtypeStruct`; costs nothing after compilation.

    Args:
        **arrays: arrays under their suffixed names; an optional array that is None is skipped.

    Returns:
        letter -> size, in the order of appearance.

    Raises:
        ValueError: an array has another rank than its suffix has letters, or two axes with the
            same letter differ in size.
    """
    dims: dict[str, int] = {}
    owner: dict[str, str] = {}
    for name, array in arrays.items():
        if array is None:
            continue
        stem, _, suffix = name.rpartition("_")
        if not stem or not (suffix.isalpha() and suffix.islower()):
            raise ValueError(f"{name}: the name needs a suffix with one letter per axis")
        shape = np.shape(array)
        if len(shape) != len(suffix):
            raise ValueError(f"{name}: shape {shape} has {len(shape)} dims, not {len(suffix)}")
        for letter, size in zip(suffix, shape, strict=True):
            if dims.setdefault(letter, size) != size:
                raise ValueError(
                    f"{name}: dim '{letter}' is {size}, but {owner[letter]} says {dims[letter]}"
                )
            owner.setdefault(letter, name)
    return dims
