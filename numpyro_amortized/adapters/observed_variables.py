# SPDX-License-Identifier: Apache-2.0
"""The bijection between one observation and a vector of inference variables."""

from collections.abc import Mapping
from functools import reduce
from operator import add
from typing import NamedTuple, final

import jax.numpy as jnp
import numpy as np
from jax import Array
from numpyro.distributions import biject_to
from numpyro.distributions.constraints import Constraint

from numpyro_amortized.adapters.base import Bijection, Data, Transform
from numpyro_amortized.adapters.latents import UnconstrainLatents
from numpyro_amortized.adapters.observations import StandardizeObserved
from numpyro_amortized.adapters.parts import Category, Numbers, Part


class ObservedMap(NamedTuple):
    """How one observed site becomes inference variables.

    Continuous values go by the bijection of their support, are standardized, and squashed by
    asinh where tails are heavy. Discrete values stay whole numbers, from 0 for categories.
    """

    name: str
    shape: tuple[int, ...]  # of one observation
    dtype: np.dtype
    support: Constraint  # of the site
    parts: tuple[Part, ...]
    onto: Constraint | None = None  # whose bijection is used; None for discrete values
    mean: np.ndarray = np.zeros(())  # shape (size,), for continuous values
    scale: np.ndarray = np.ones(())
    heavy: np.ndarray = np.zeros((), bool)
    first: int = 0  # the first category

    @property
    def size(self) -> int:
        """Number of variables."""
        return sum(part.size for part in self.parts)

    def forward(self, x: Array) -> tuple[Array, Array]:
        """Variables, shape ``(size,)``, and the log-determinant, of one observation."""
        x = jnp.asarray(x, jnp.result_type(float))
        if self.onto is None:
            return jnp.ravel(x) - self.first, jnp.zeros(())
        transform = biject_to(self.onto)
        z = transform.inv(x)
        standard = (jnp.ravel(z) - self.mean) / self.scale
        log_slope = jnp.where(self.heavy, -0.5 * jnp.log1p(standard**2), 0) - jnp.log(self.scale)
        log_det = -jnp.sum(transform.log_abs_det_jacobian(z, x))
        squashed = jnp.where(self.heavy, jnp.arcsinh(standard), standard)
        return squashed, log_det + jnp.sum(log_slope)

    def inverse(self, variables: Array) -> Array:
        """The observation at variables of shape ``(size,)``."""
        if self.onto is None:
            values = jnp.round(variables) + self.first
            return values.reshape(self.shape).astype(self.dtype)
        # the inner `where` keeps the gradient of the branch not taken finite
        squashed = jnp.where(self.heavy, variables, 0)
        standard = jnp.where(self.heavy, jnp.sinh(squashed), variables)
        transform = biject_to(self.onto)
        z = (standard * self.scale + self.mean).reshape(transform.inverse_shape(self.shape))
        return transform(z).astype(self.dtype)

    def describe(self) -> str:
        """What becomes of the site, in words."""
        if isinstance(self.parts[0], Numbers):
            tails = ", squashed by asinh" if np.any(self.heavy) else ""
            return f"{self.size} numbers by their support, standardized{tails}"
        if isinstance(self.parts[0], Category):
            return f"one of {self.parts[0].num_categories} categories"
        return "counts"


@final
class CollectObservations(Bijection):
    """Observed sites to ``inference_variables``, one observation in one vector, in trace order.

    :param maps: one for each observed site.
    :param axes: the axis of the members of each site that has them, observed or context, where
        observations are independent given the latents; a value is then that of one member.
    :param reason: why they are, or are not.
    """

    def __init__(self, maps: tuple[ObservedMap, ...], axes: Mapping[str, int], reason: str) -> None:
        self.maps = maps
        self.axes = dict(axes)
        self.reason = reason

    @property
    def parts(self) -> tuple[Part, ...]:
        """What the inference variables consist of."""
        return tuple(part for one in self.maps for part in one.parts)

    def forward(self, data: Data) -> dict[str, Array]:
        names = [one.name for one in self.maps]
        if not all(name in data for name in names):
            return dict(data)
        rest = {name: value for name, value in data.items() if name not in names}
        pieces = [one.forward(data[one.name])[0] for one in self.maps]
        return rest | {"inference_variables": jnp.concatenate(pieces)}

    def inverse(self, data: Data) -> dict[str, Array]:
        if "inference_variables" not in data:
            return dict(data)
        rest = {name: value for name, value in data.items() if name != "inference_variables"}
        cuts = np.cumsum([one.size for one in self.maps])[:-1]
        pieces = jnp.split(data["inference_variables"], cuts)
        return rest | {
            one.name: one.inverse(piece) for one, piece in zip(self.maps, pieces, strict=True)
        }

    def log_det_jac(self, data: Data) -> Array:
        return reduce(add, [one.forward(data[one.name])[1] for one in self.maps])

    def describe(self) -> list[str]:
        lines = [f"{one.name}: {one.describe()}" for one in self.maps]
        unit = "each observation by itself" if self.axes else "all observations jointly"
        return [*lines, f"likelihood of {unit}: {self.reason}"]


@final
class ConditionOnLatents(Transform):
    """Latents and context to ``inference_conditions``, one vector.

    :param latents: the unconstrained, standardized vector of the latents.
    :param context: the standardization of the context.
    """

    def __init__(self, latents: UnconstrainLatents, context: StandardizeObserved) -> None:
        self.latents = latents
        self.context = context

    def forward(self, data: Data) -> dict[str, Array]:
        given = list(self.context.standardizations)
        own = (*self.latents.names, *given)
        if not any(name in data for name in own):
            return dict(data)
        if missing := [name for name in own if name not in data]:
            raise ValueError(f"Adapter: expected the values {list(own)}, {missing} are missing.")
        latents = self.latents.forward({n: data[n] for n in (*self.latents.names, *self._needs)})
        context = self.context.forward({name: data[name] for name in given})
        parts = [latents["inference_variables"], *(jnp.ravel(context[name]) for name in given)]
        rest = {name: value for name, value in data.items() if name not in own}
        return rest | {"inference_conditions": jnp.concatenate(parts)}

    @property
    def _needs(self) -> tuple[str, ...]:
        return self.latents.needs

    def describe(self) -> list[str]:
        lines = [line.replace("inferred", "condition") for line in self.latents.describe()]
        return lines + self.context.describe()
