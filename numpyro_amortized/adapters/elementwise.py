# SPDX-License-Identifier: Apache-2.0
"""Bijections of the single numbers of an entry."""

from dataclasses import dataclass
from typing import final

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from numpyro_amortized.adapters.entrywise import (
    EntrywiseBijection,
    as_float,
    constant_like,
    summed,
)


@final
@dataclass(frozen=True)
class Log(EntrywiseBijection):
    """The logarithm of positive numbers."""

    def forward_entry(self, x: Array) -> Array:
        return jnp.log(as_float(x))

    def inverse_entry(self, z: Array) -> Array:
        return jnp.exp(z)

    def log_det_entry(self, x: Array) -> Array:
        return -jnp.sum(jnp.log(as_float(x)))

    @property
    def label(self) -> str:
        return "log"


@final
@dataclass(frozen=True)
class Log1p(EntrywiseBijection):
    """The logarithm of one plus numbers above -1."""

    def forward_entry(self, x: Array) -> Array:
        return jnp.log1p(as_float(x))

    def inverse_entry(self, z: Array) -> Array:
        return jnp.expm1(z)

    def log_det_entry(self, x: Array) -> Array:
        return -jnp.sum(jnp.log1p(as_float(x)))

    @property
    def label(self) -> str:
        return "log1p"


@final
@dataclass(frozen=True)
class Sqrt(EntrywiseBijection):
    """The square root of positive numbers."""

    def forward_entry(self, x: Array) -> Array:
        return jnp.sqrt(as_float(x))

    def inverse_entry(self, z: Array) -> Array:
        return jnp.square(z)

    def log_det_entry(self, x: Array) -> Array:
        return -jnp.sum(jnp.log(2.0) + 0.5 * jnp.log(as_float(x)))

    @property
    def label(self) -> str:
        return "square root"


@final
@dataclass(frozen=True, eq=False)
class Scale(EntrywiseBijection):
    """Multiply by a constant that is nowhere zero.

    :param by: it broadcasts against one value.
    """

    by: ArrayLike

    def __post_init__(self) -> None:
        if not (np.isfinite(self.by) & (np.asarray(self.by) != 0)).all():
            raise ValueError(f"Adapter: scale: expected finite values other than 0, got {self.by}.")

    def forward_entry(self, x: Array) -> Array:
        x = as_float(x)
        return x * constant_like(self.by, x, "scale")

    def inverse_entry(self, z: Array) -> Array:
        return z / constant_like(self.by, z, "scale")

    def log_det_entry(self, x: Array) -> Array:
        x = as_float(x)
        return summed(jnp.log(jnp.abs(constant_like(self.by, x, "scale"))), x)

    @property
    def label(self) -> str:
        return f"multiplied by {self.by}"


@final
@dataclass(frozen=True, eq=False)
class Shift(EntrywiseBijection):
    """Add a constant.

    :param by: it broadcasts against one value.
    """

    by: ArrayLike

    def __post_init__(self) -> None:
        if not np.isfinite(self.by).all():
            raise ValueError(f"Adapter: shift: expected finite values, got {self.by}.")

    def forward_entry(self, x: Array) -> Array:
        x = as_float(x)
        return x + constant_like(self.by, x, "shift")

    def inverse_entry(self, z: Array) -> Array:
        return z - constant_like(self.by, z, "shift")

    def log_det_entry(self, x: Array) -> Array:
        return jnp.zeros(())

    @property
    def label(self) -> str:
        return f"shifted by {self.by}"
