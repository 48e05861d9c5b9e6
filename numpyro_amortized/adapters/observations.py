# SPDX-License-Identifier: Apache-2.0
"""Observed values to network inputs of order one."""

from collections.abc import Sequence
from enum import Enum
from types import ModuleType
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy.special import ndtri

from numpyro_amortized.adapters.base import Data, Transform
from numpyro_amortized.adapters.exchangeability import ObservedSet
from numpyro_amortized.simulators.varying_size import VaryingSize

_GAIN = 0.02  # in correlation with normal quantiles, before a squashing is preferred


class Squash(Enum):
    """Monotone maps that tame tails."""

    IDENTITY = "as it is"
    ASINH = "squashed by asinh"
    LOG1P = "squashed by log1p"
    LOG = "squashed by log"


class Standardization(NamedTuple):
    """How one observed site is scaled; the arrays broadcast against the site's value."""

    squash: Squash
    center: np.ndarray
    spread: np.ndarray
    mean: np.ndarray
    scale: np.ndarray

    def __call__(self, x: Array) -> Array:
        """Standardized values, of the shape of ``x``."""
        x = jnp.asarray(x, self.mean.dtype)
        squashed = _squash(self.squash, x, self.center, self.spread)
        return (squashed - self.mean) / self.scale


def _squash[A: (Array, np.ndarray)](
    squash: Squash, x: A, center: np.ndarray, spread: np.ndarray, xp: ModuleType = jnp
) -> A:
    match squash:
        case Squash.IDENTITY:
            return x
        case Squash.ASINH:
            return xp.arcsinh((x - center) / spread)
        case Squash.LOG1P:
            return xp.log1p(xp.maximum(x, 0) / spread)
        case Squash.LOG:
            return xp.log(xp.maximum(x, xp.finfo(x.dtype).tiny))


def fit_standardization(draws: np.ndarray, pooled_axes: Sequence[int]) -> Standardization:
    """Choose the squashing and the moments of one observed site from pilot draws.

    The squashing is the one whose values correlate best with normal quantiles; as they are, unless
    another one gains clearly.

    :param draws: pilot draws, the first axis of simulations.
    :param pooled_axes: axes of the site whose members share their moments (sets).
    """
    axes = (0, *(axis + 1 for axis in pooled_axes))
    center, spread = _quantile_moments(draws, axes)
    candidates = [Squash.IDENTITY, Squash.ASINH]
    if (draws >= 0).all():
        candidates += [Squash.LOG1P] + ([Squash.LOG] if (draws > 0).all() else [])
    squashed = {c: _squash(c, draws, center, spread, np) for c in candidates}
    scores = {
        c: _normality(values, axes) - (0 if c is Squash.IDENTITY else _GAIN)
        for c, values in squashed.items()
    }
    best = max(scores, key=scores.__getitem__)
    mean = squashed[best].mean(axes, keepdims=True)[0]
    scale = squashed[best].std(axes, keepdims=True)[0]
    resolution = 1e-6 * np.maximum(np.abs(mean), 1e-30)
    return Standardization(best, center, spread, mean, np.where(scale > resolution, scale, 1.0))


def _quantile_moments(draws: np.ndarray, axes: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    low, middle, high = np.quantile(draws, [0.1587, 0.5, 0.8413], axis=axes, keepdims=True)
    spread = (high - low) / 2
    spread = np.where(spread > 0, spread, draws.std(axes, keepdims=True))
    spread = np.where(spread > 0, spread, 1.0)
    return middle[0].astype(draws.dtype), spread[0].astype(draws.dtype)


def _normality(values: np.ndarray, axes: tuple[int, ...]) -> float:
    """Mean correlation of the sorted values with normal quantiles (Filliben, 1975)."""
    kept = [axis for axis in range(values.ndim) if axis not in axes]
    columns = np.sort(
        np.transpose(values, kept + list(axes)).reshape(
            int(np.prod([values.shape[axis] for axis in kept])), -1
        )
    )
    columns = columns[columns[:, 0] < columns[:, -1]].astype(np.float64)
    if not len(columns):
        return 1.0
    quantiles = ndtri((np.arange(columns.shape[1]) + 0.5) / columns.shape[1])
    columns -= columns.mean(1, keepdims=True)
    return float(
        np.mean(columns @ quantiles / np.linalg.norm(columns, axis=1)) / np.linalg.norm(quantiles)
    )


class StandardizeObserved(Transform):
    """Observed sites to values of order one; entries outside the likelihood become zero.

    :param standardizations: one for each observed site.
    :param masks: booleans, of each site's shape, for sites with entries that the likelihood leaves
        out (``handlers.mask``, ``obs_mask``): where false, the value must not be seen.
    """

    def __init__(
        self, standardizations: dict[str, Standardization], masks: dict[str, np.ndarray]
    ) -> None:
        self.standardizations = standardizations
        self.masks = masks

    def forward(self, data: Data) -> dict[str, Array]:
        return {
            name: self._standardize(name, value) if name in self.standardizations else value
            for name, value in data.items()
        }

    def describe(self) -> list[str]:
        return [
            f"{name}: {standardization.squash.value}, standardized by pilot draws"
            + (", masked entries set to zero" if name in self.masks else "")
            for name, standardization in self.standardizations.items()
        ]

    def _standardize(self, name: str, value: Array) -> Array:
        standardized = self.standardizations[name](value)
        return jnp.where(self.masks[name], standardized, 0) if name in self.masks else standardized


class MaskBeyondSize(Transform):
    """Zeros beyond the size of a simulation, and which members of the set are within it.

    :param varying: the size, and the axes that have it.
    :param sets: the sets found; the first one is summarized.
    """

    def __init__(self, varying: VaryingSize, sets: Sequence[ObservedSet]) -> None:
        self.varying, self.sets = varying, tuple(sets)
        in_set = {name for group in sets[:1] for name in group.axes}
        self.masks_set = any(name in in_set for name in varying.axes)

    def forward(self, data: Data) -> dict[str, Array]:
        if self.varying.name not in data:
            return dict(data)
        within = jnp.arange(self.varying.high) < data[self.varying.name]
        values = {name: self._mask(name, value, within) for name, value in data.items()}
        return values | ({"summary_mask": within} if self.masks_set else {})

    def _mask(self, name: str, value: Array, within: Array) -> Array:
        for axis in self.varying.axes.get(name, ()):
            shape = [-1 if k == axis else 1 for k in range(value.ndim)]
            value = jnp.where(within.reshape(shape), value, 0)
        return value

    def describe(self) -> list[str]:
        return [self.varying.describe()]


class CollectSet(Transform):
    """Observed sites that share a set to ``summary_variables``, ``(members, features)``."""

    def __init__(self, axes: dict[str, int], reason: str) -> None:
        self.axes = axes
        self.reason = reason

    def forward(self, data: Data) -> dict[str, Array]:
        if not all(name in data for name in self.axes):
            return dict(data)
        members = [
            jnp.moveaxis(data[name], axis, 0).reshape(data[name].shape[axis], -1)
            for name, axis in self.axes.items()
        ]
        rest = {name: value for name, value in data.items() if name not in self.axes}
        return rest | {"summary_variables": jnp.concatenate(members, axis=-1)}

    def describe(self) -> list[str]:
        names = ", ".join(self.axes)
        return [f"{names}: one set of members, summarized: {self.reason}"]


class CollectConditions(Transform):
    """Observed sites to ``inference_conditions``, one vector."""

    def __init__(self, reasons: dict[str, str]) -> None:
        self.reasons = reasons

    def forward(self, data: Data) -> dict[str, Array]:
        if not self.reasons or not all(name in data for name in self.reasons):
            return dict(data)
        parts = [jnp.ravel(data[name]) for name in self.reasons]
        rest = {name: value for name, value in data.items() if name not in self.reasons}
        return rest | {"inference_conditions": jnp.concatenate(parts)}

    def describe(self) -> list[str]:
        return [f"{name}: conditions as numbers: {why}" for name, why in self.reasons.items()]


class DropSites(Transform):
    """Leave sites out."""

    def __init__(self, reasons: dict[str, str]) -> None:
        self.reasons = reasons

    def forward(self, data: Data) -> dict[str, Array]:
        return {name: value for name, value in data.items() if name not in self.reasons}

    def describe(self) -> list[str]:
        return [f"{name}: {why}" for name, why in self.reasons.items()]
