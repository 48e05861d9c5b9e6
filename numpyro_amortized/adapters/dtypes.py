# SPDX-License-Identifier: Apache-2.0
"""The types of entries."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import final

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from numpyro_amortized.adapters.base import Bijection, Data, Draws
from numpyro_amortized.adapters.binding import Bindable, Shapes


@final
@dataclass(frozen=True, eq=False)
class MapDtype(Bijection, Bindable):
    """Convert entries to another type; double precision is there only where JAX has it enabled.

    :param names: the entries.
    :param dtype: the new type.
    :param before: the types that entries had, known once bound and restored by the inverse.
    """

    names: tuple[str, ...]
    dtype: DTypeLike
    before: Mapping[str, jnp.dtype] = field(default_factory=dict)

    def forward(self, data: Data) -> dict[str, Array]:
        return {n: self._convert(n, x) if n in self.names else x for n, x in data.items()}

    def inverse(self, data: Data) -> dict[str, Array]:
        return {n: z.astype(self.before.get(n, z.dtype)) for n, z in data.items()}

    def log_det_jac(self, data: Data) -> Array:
        return jnp.zeros(())

    def bind(self, shapes: Shapes, draws: Callable[[], Draws]) -> "MapDtype":
        return replace(self, before={n: shapes[n].dtype for n in self.names if n in shapes})

    def describe(self) -> list[str]:
        return [f"{', '.join(self.names) or 'no entry'}: to {jnp.dtype(self.dtype).name}"]

    def _convert(self, name: str, x: Array) -> Array:
        # of a value, since a type asked for by name warns where double precision is not enabled
        target = jnp.asarray(np.zeros((), self.dtype)).dtype
        if jnp.issubdtype(x.dtype, jnp.inexact) and not jnp.issubdtype(target, jnp.inexact):
            raise ValueError(
                f"Adapter: '{name}' of type {x.dtype} would lose its fractions as {target}. "
                "Use `apply` with a function of your own to round."
            )
        return x.astype(target)
