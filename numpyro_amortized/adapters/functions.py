# SPDX-License-Identifier: Apache-2.0
"""Functions of the user's own as steps."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import jax
import jax.numpy as jnp
from jax import Array

from numpyro_amortized.adapters.entrywise import EntrywiseBijection, EntrywiseMap

Function = Callable[[Array], Array]


@final
@dataclass(frozen=True)
class Apply(EntrywiseBijection):
    """A function with its inverse.

    :param function: maps one value to one of as many numbers.
    :param undo: its inverse.
    :param log_det: the log absolute determinant of the function's Jacobian at a value; by default
        by automatic differentiation, whose cost grows with the cube of the value's size.
    """

    function: Function
    undo: Function
    log_det: Function | None = None

    def forward_entry(self, x: Array) -> Array:
        return self.function(x)

    def inverse_entry(self, z: Array) -> Array:
        return self.undo(z)

    def log_det_entry(self, x: Array) -> Array:
        if self.log_det is not None:
            return jnp.sum(self.log_det(x))
        jacobian = jax.jacfwd(lambda flat: jnp.ravel(self.function(flat.reshape(x.shape))))
        matrix = jacobian(jnp.ravel(x))
        if matrix.shape[0] != matrix.shape[1]:
            raise ValueError(
                f"Adapter: apply {_name(self.function)}: expected as many numbers as in the value, "
                f"{matrix.shape[1]}, got {matrix.shape[0]}. Give `log_det_jac` for a map between "
                "values of other coordinates."
            )
        return jnp.linalg.slogdet(matrix)[1]

    @property
    def label(self) -> str:
        return _name(self.function)


@final
@dataclass(frozen=True)
class ApplyOneWay(EntrywiseMap):
    """A function without an inverse.

    :param function: maps one value.
    """

    function: Function

    def forward_entry(self, x: Array) -> Array:
        return self.function(x)

    @property
    def label(self) -> str:
        return f"{_name(self.function)}, not to be undone"


def _name(function: Function) -> str:
    return getattr(function, "__name__", repr(function))
