"""The precision policy: what parameters are stored in, what matrices are multiplied in."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxvsa.core.errors import UserError, nearest

KNOWN = ("float32", "bfloat16", "float64")


@dataclasses.dataclass(frozen=True)
class Precision:
    """Dtypes of one model, by name.

    Softmax, statistics of norms, logits and losses do not follow `compute`: they are islands of
    at least float32 (see `island`).

    Attributes:
        param: dtype parameters are created and stored in.
        compute: dtype of matrix products and activations.

    Raises:
        UserError: a name is none of float32, bfloat16, float64.
    """

    param: str = "float32"
    compute: str = "float32"

    def __post_init__(self) -> None:
        for field in ("param", "compute"):
            name = getattr(self, field)
            if name not in KNOWN:
                hint = nearest(str(name), KNOWN)
                raise UserError(
                    f"precision.{field} is '{name}', not one of {', '.join(KNOWN)}{hint}"
                )

    @property
    def param_dtype(self) -> np.dtype:
        """Dtype of the parameters."""
        return jnp.dtype(self.param)

    @property
    def compute_dtype(self) -> np.dtype:
        """Dtype of matrix products and activations."""
        return jnp.dtype(self.compute)


def island(*arrays: Any) -> np.dtype:
    """Dtype in which sensitive parts are computed: at least float32, float64 if an input is.

    Args:
        *arrays: arrays, dtypes or Python scalars (a scalar does not widen an array's dtype).
    """
    return jnp.promote_types(jnp.result_type(*arrays), jnp.float32)
