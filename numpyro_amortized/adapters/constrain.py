# SPDX-License-Identifier: Apache-2.0
"""Values of constrained supports to real numbers, by NumPyro's bijections."""

from dataclasses import dataclass
from typing import final

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from numpyro.distributions import biject_to, constraints
from numpyro.distributions.constraints import Constraint

from numpyro_amortized.adapters.entrywise import EntrywiseBijection, as_float
from numpyro_amortized.simulators.tracing import has_bijection


@final
@dataclass(frozen=True, eq=False)
class Constrain(EntrywiseBijection):
    """Real numbers from values of a constrained support.

    The shape may change: three real numbers say what a simplex of four is. The log-determinant
    is then with respect to the independent coordinates that :func:`biject_to` counts.

    :param constraint: the support, a NumPyro constraint with a bijection.
    """

    constraint: Constraint

    def forward_entry(self, x: Array) -> Array:
        return biject_to(self.constraint).inv(self._inside(as_float(x)))

    def inverse_entry(self, z: Array) -> Array:
        return biject_to(self.constraint)(z)

    def log_det_entry(self, x: Array) -> Array:
        x = self._inside(as_float(x))
        transform = biject_to(self.constraint)
        return -jnp.sum(transform.log_abs_det_jacobian(transform.inv(x), x))

    @property
    def label(self) -> str:
        return f"unconstrained from {self.constraint}"

    def _inside(self, x: Array) -> Array:
        """Values that rounding has put on a bound, next to it: there the bijection is finite."""
        lower = getattr(self.constraint, "lower_bound", None)
        upper = getattr(self.constraint, "upper_bound", None)
        width = jnp.asarray(1 if lower is None or upper is None else upper - lower, x.dtype)
        limits = jnp.finfo(x.dtype)
        if lower is not None:
            first = _next(jnp.asarray(lower, x.dtype), limits.tiny * jnp.maximum(width, 1), 1)
            x = jnp.where((x >= lower) & (x < first), first, x)
        if upper is not None:
            # the share (x - lower) / width has the resolution eps next to one
            last = _next(jnp.asarray(upper, x.dtype), limits.eps * width, -1)
            x = jnp.where((x <= upper) & (x > last), last, x)
        return x


def _next(bound: Array, gap: ArrayLike, sign: int) -> Array:
    """The number next to a bound, at least a gap away from it."""
    neighbour = jnp.nextafter(bound, jnp.full_like(bound, sign * jnp.inf))
    return bound + sign * jnp.maximum(jnp.abs(neighbour - bound), gap)


def to_constraint(
    lower: ArrayLike | None, upper: ArrayLike | None, constraint: Constraint | None
) -> Constraint:
    """The constraint that the user means.

    :raises ValueError: where it is none or two, is empty, or has no bijection.
    """
    if (constraint is None) == (lower is None and upper is None):
        raise ValueError(
            "Adapter: constrain: expected `lower`, `upper` or both, or else `constraint`, a "
            f"NumPyro constraint; got lower={lower}, upper={upper}, constraint={constraint}."
        )
    if constraint is None:
        return _interval(lower, upper)
    if not has_bijection(constraint):
        raise ValueError(
            f"Adapter: constrain: {constraint} has no bijection to real numbers. Expected a "
            "constraint that `numpyro.distributions.biject_to` knows."
        )
    return constraint


def _interval(lower: ArrayLike | None, upper: ArrayLike | None) -> Constraint:
    if upper is None:
        return constraints.greater_than(lower)
    if lower is None:
        return constraints.less_than(upper)
    if not (np.asarray(lower) < np.asarray(upper)).all():
        raise ValueError(
            f"Adapter: constrain: expected `lower` below `upper`, got {lower} and {upper}."
        )
    return constraints.interval(lower, upper)
