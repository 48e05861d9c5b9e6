# SPDX-License-Identifier: Apache-2.0
"""Maps that are not undone: they may prepare observations, but not inference variables."""

from dataclasses import dataclass
from typing import Literal, final

import jax
import jax.numpy as jnp
from jax import Array

from numpyro_amortized.adapters.base import Data, Transform
from numpyro_amortized.adapters.entrywise import EntrywiseMap


@final
@dataclass(frozen=True)
class Drop(Transform):
    """Leave entries out."""

    names: tuple[str, ...]

    def forward(self, data: Data) -> dict[str, Array]:
        return {name: value for name, value in data.items() if name not in self.names}

    def describe(self) -> list[str]:
        return [f"{', '.join(self.names) or 'no entry'}: dropped"]


@final
@dataclass(frozen=True)
class Keep(Transform):
    """Leave all other entries out."""

    names: tuple[str, ...]

    def forward(self, data: Data) -> dict[str, Array]:
        return {name: value for name, value in data.items() if name in self.names}

    def describe(self) -> list[str]:
        return [f"{', '.join(self.names) or 'no entry'}: kept, all others dropped"]


@final
@dataclass(frozen=True)
class AsSet(Transform):
    """Values as sets of members with features, ``(members, features)``.

    A scalar is a set of one member, a vector a set of members with one feature each, and what has
    more axes is a set already.

    :param names: the entries.
    :param mask: name of an entry of booleans that says which numbers are observed; members without
        any are left out by the summary network: the step adds ``summary_mask``.
    """

    names: tuple[str, ...]
    mask: str | None = None

    def forward(self, data: Data) -> dict[str, Array]:
        sets = {n: _with_features(x) if n in self.names else x for n, x in data.items()}
        if self.mask is None or not any(name in data for name in self.names):
            return sets
        if self.mask not in data:
            raise ValueError(
                f"Adapter: as_set {list(self.names)}: expected the mask '{self.mask}' beside them, "
                f"got {list(data)}."
            )
        observed = _with_features(data[self.mask].astype(bool))
        members = jnp.any(observed, axis=tuple(range(1, observed.ndim)))
        return sets | {"summary_mask": members}

    def describe(self) -> list[str]:
        masked = f", members seen where {self.mask}" if self.mask else ""
        return [f"{', '.join(self.names)}: a set of members{masked}"]


@final
@dataclass(frozen=True)
class AsTimeSeries(EntrywiseMap):
    """Values as series of steps with features, ``(steps, features)``."""

    def forward_entry(self, x: Array) -> Array:
        return _with_features(x)

    @property
    def label(self) -> str:
        return "a series of time steps"


def _with_features(x: Array) -> Array:
    return jnp.atleast_1d(x)[:, None] if x.ndim < 2 else x


@final
@dataclass(frozen=True)
class Broadcast(Transform):
    """Repeat values along the axes of another entry.

    :param names: the entries.
    :param to: the entry whose axes they get.
    :param expand: where missing axes are inserted: ``"left"``, ``"right"``, or their places.
    :param exclude: axes that keep their length.
    :param squeeze: axes of length one that are removed at last.
    """

    names: tuple[str, ...]
    to: str
    expand: Literal["left", "right"] | tuple[int, ...] = "left"
    exclude: tuple[int, ...] = (-1,)
    squeeze: tuple[int, ...] = ()

    def forward(self, data: Data) -> dict[str, Array]:
        if not any(name in data for name in self.names):
            return dict(data)
        if self.to not in data:
            raise ValueError(
                f"Adapter: broadcast {list(self.names)}: expected '{self.to}' beside them, got "
                f"{list(data)}."
            )
        shape = data[self.to].shape
        return {n: self._broadcast(x, shape) if n in self.names else x for n, x in data.items()}

    def describe(self) -> list[str]:
        return [f"{', '.join(self.names)}: broadcast to the axes of {self.to}"]

    def _broadcast(self, x: Array, shape: tuple[int, ...]) -> Array:
        missing = max(len(shape) - x.ndim, 0)
        match self.expand:
            case "left":
                places = tuple(range(missing))
            case "right":
                places = tuple(range(-missing, 0))
            case tuple():
                places = self.expand
        x = jnp.expand_dims(x, places)
        kept = {axis % x.ndim for axis in self.exclude if -x.ndim <= axis < x.ndim}
        target = tuple(x.shape[axis] if axis in kept else shape[axis] for axis in range(x.ndim))
        return jnp.squeeze(jnp.broadcast_to(x, target), self.squeeze)


@final
@dataclass(frozen=True)
class Take(EntrywiseMap):
    """Some of the places along an axis.

    :param indices: which.
    :param axis: of a value.
    """

    indices: tuple[int, ...]
    axis: int = -1

    def forward_entry(self, x: Array) -> Array:
        size = x.shape[self.axis]
        beyond = [index for index in self.indices if not -size <= index < size]
        if beyond:
            raise ValueError(
                f"Adapter: take: axis {self.axis} of a value of shape {x.shape} has no places "
                f"{beyond}."
            )
        return jnp.take(x, jnp.asarray(self.indices), axis=self.axis)

    @property
    def label(self) -> str:
        return f"places {list(self.indices)} of axis {self.axis}"


@final
@dataclass(frozen=True)
class OneHot(EntrywiseMap):
    """Classes ``0, ..., num_classes - 1`` as vectors along a new last axis.

    :param num_classes: their number; another value becomes a vector of zeros.
    """

    num_classes: int

    def forward_entry(self, x: Array) -> Array:
        if jnp.issubdtype(x.dtype, jnp.inexact):
            raise TypeError(
                f"Adapter: one_hot {list(self.names)}: expected integers, got {x.dtype}. Where the "
                "numbers are whole, put a step before: map_dtype(names, int)."
            )
        return jax.nn.one_hot(x, self.num_classes)

    @property
    def label(self) -> str:
        return f"one of {self.num_classes} classes"


@final
@dataclass(frozen=True)
class NanToNum(Transform):
    """Replace missing values, which are NaN.

    :param names: the entries.
    :param default_value: what replaces them.
    :param return_mask: whether to add the entry ``<name>_mask``, booleans of the value's shape,
        true where the value was observed.
    """

    names: tuple[str, ...]
    default_value: float = 0.0
    return_mask: bool = True

    def forward(self, data: Data) -> dict[str, Array]:
        result = dict(data)
        for name in self.names:
            if name in data:
                observed = ~jnp.isnan(data[name])
                result[name] = jnp.where(
                    observed, data[name], jnp.asarray(self.default_value, data[name].dtype)
                )
                result |= {f"{name}_mask": observed} if self.return_mask else {}
        return result

    def describe(self) -> list[str]:
        masks = ", ".join(f"{name}_mask" for name in self.names)
        says = f"; {masks} true where observed" if self.return_mask else ""
        return [f"{', '.join(self.names)}: NaN becomes {self.default_value}{says}"]
