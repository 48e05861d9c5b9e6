# SPDX-License-Identifier: Apache-2.0
"""Standardization by moments that are given, or fitted once to pilot draws and then frozen."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, final

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from numpyro_amortized.adapters.base import Bijection, Data, Draws, Transform
from numpyro_amortized.adapters.binding import Bindable, Shapes
from numpyro_amortized.adapters.entrywise import as_float, constant_like, summed

_RESOLUTION = 1e-6  # of the mean: what varies less is constant but for rounding


@final
@dataclass(frozen=True, eq=False)
class Standardize(Bijection):
    """Subtract means and divide by standard deviations.

    :param means: for each entry, broadcasts against one value.
    :param stds: the same, positive.
    :param mask: name of an entry of booleans that says which numbers are observed; the others
        stay as they are.
    :param origin: where the moments are from.
    """

    means: Mapping[str, ArrayLike]
    stds: Mapping[str, ArrayLike]
    mask: str | None = None
    origin: str = "moments given"

    def __post_init__(self) -> None:
        for name, std in self.stds.items():
            if not (np.isfinite(std) & (np.asarray(std) > 0)).all():
                raise ValueError(
                    f"Adapter: standardize '{name}': expected positive and finite `std`, got {std}."
                )

    @property
    def names(self) -> tuple[str, ...]:
        """The entries that are standardized."""
        return tuple(self.means)

    def forward(self, data: Data) -> dict[str, Array]:
        return {n: self._forward(n, x, data) if n in self.means else x for n, x in data.items()}

    def inverse(self, data: Data) -> dict[str, Array]:
        return {n: self._inverse(n, z, data) if n in self.means else z for n, z in data.items()}

    def log_det_jac(self, data: Data) -> Array:
        terms = [self._log_det(n, data[n], data) for n in self.means if n in data]
        return sum(terms, jnp.zeros(()))

    def describe(self) -> list[str]:
        masked = f", where {self.mask}" if self.mask else ""
        names = ", ".join(self.names) or "no entry"
        return [f"{names}: standardized by {self.origin}{masked}"]

    def _moments(self, name: str, x: Array) -> tuple[Array, Array]:
        what = f"standardize '{name}'"
        mean = constant_like(self.means[name], x, what)
        return mean, constant_like(self.stds[name], x, what)

    def _forward(self, name: str, x: Array, data: Data) -> Array:
        x = as_float(x)
        mean, std = self._moments(name, x)
        return jnp.where(self._mask(name, x, data), (x - mean) / std, x)

    def _inverse(self, name: str, z: Array, data: Data) -> Array:
        mean, std = self._moments(name, z)
        return jnp.where(self._mask(name, z, data), z * std + mean, z)

    def _log_det(self, name: str, x: Array, data: Data) -> Array:
        x = as_float(x)
        _, std = self._moments(name, x)
        return summed(jnp.where(self._mask(name, x, data), -jnp.log(std), 0), x)

    def _mask(self, name: str, x: Array, data: Data) -> ArrayLike:
        if self.mask is None:
            return True
        if self.mask not in data:
            raise ValueError(
                f"Adapter: standardize '{name}': expected its mask '{self.mask}' beside it, got "
                f"{list(data)}."
            )
        return jnp.broadcast_to(data[self.mask].astype(bool), x.shape)


@final
@dataclass(frozen=True)
class FitStandardize(Bindable):
    """Standardization whose moments are fitted to pilot draws when the adapter is bound.

    :param names: the entries.
    :param pooled: axes of a value whose members share their moments, such as those of a set.
    :param mask: name of an entry of booleans that says which numbers are observed.
    """

    names: tuple[str, ...]
    pooled: tuple[int, ...] = ()
    mask: str | None = None

    def forward(self, data: Data) -> dict[str, Array]:
        if not any(name in data for name in self.names):
            return dict(data)
        raise RuntimeError(
            f"Adapter: the moments of {list(self.names)} are not fitted yet. Call "
            "`adapter.bind(draws)` with simulations first, or give `mean` and `std`."
        )

    def bind(self, shapes: Shapes, draws: Callable[[], Draws]) -> Transform:
        if not any(name in shapes for name in self.names):
            return self
        values = draws()
        mask = None if self.mask is None else np.asarray(values[self.mask], bool)
        moments = {n: fit_moments(np.asarray(values[n]), self.pooled, mask) for n in self.names}
        means = {name: mean for name, (mean, _) in moments.items()}
        stds = {name: std for name, (_, std) in moments.items()}
        return Standardize(means, stds, self.mask, "pilot draws")

    def describe(self) -> list[str]:
        return [f"{', '.join(self.names)}: to be standardized by pilot draws"]


def fit_moments(
    draws: np.ndarray, pooled: tuple[int, ...] = (), mask: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Means and standard deviations of the finite, observed numbers of each place of a value.

    :param draws: values with a leading axis of simulations.
    :param pooled: axes of a value that share their moments.
    :param mask: booleans that broadcast against the draws.
    :return: arrays that broadcast against one value; places that never vary have deviation 1.
    """
    rank = draws.ndim - 1
    axes = (0, *(axis % rank + 1 for axis in pooled))
    x = draws.astype(np.float64)
    seen = np.isfinite(x) if mask is None else np.isfinite(x) & mask
    count = np.maximum(seen.sum(axes, keepdims=True), 1)
    mean = np.where(seen, x, 0).sum(axes, keepdims=True) / count
    deviations = np.where(seen, x, mean) - mean
    std = np.sqrt(np.square(deviations).sum(axes, keepdims=True) / count)
    constant = std <= _RESOLUTION * np.abs(mean)
    return mean[0], np.where(constant, 1.0, std)[0]


def given_moments(names: tuple[str, ...], *, mean: Any, std: Any, mask: str | None) -> Standardize:
    """Standardization by moments for all entries alike, or by name.

    :raises ValueError: where a mapping lacks an entry.
    """
    return Standardize(_by_name(names, mean, "mean"), _by_name(names, std, "std"), mask)


def _by_name(names: tuple[str, ...], value: Any, what: str) -> dict[str, ArrayLike]:
    if not isinstance(value, Mapping):
        return dict.fromkeys(names, value)
    missing = [name for name in names if name not in value]
    if missing:
        raise ValueError(
            f"Adapter: standardize: expected `{what}` for each of {list(names)}, "
            f"missing: {missing}."
        )
    return {name: value[name] for name in names}
