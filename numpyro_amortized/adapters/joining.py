# SPDX-License-Identifier: Apache-2.0
"""Bijections that join entries and take them apart."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import final

import jax.numpy as jnp
import numpy as np
from jax import Array

from numpyro_amortized.adapters.base import Bijection, Data, Draws
from numpyro_amortized.adapters.binding import Bindable, Shapes
from numpyro_amortized.adapters.entries import all_or_none, with_entry, without


@final
@dataclass(frozen=True)
class Concatenate(Bijection, Bindable):
    """Join entries along an axis; scalars count as vectors of one number.

    :param names: the entries, in their order.
    :param into: name of the result.
    :param axis: of a value; ``None`` flattens each value to a vector first.
    :param shapes: of each entry's value, known once bound: they are needed to take apart again.
    """

    names: tuple[str, ...]
    into: str
    axis: int | None = -1
    shapes: tuple[tuple[int, ...], ...] | None = None

    def forward(self, data: Data) -> dict[str, Array]:
        if not all_or_none(data, self.names, f"concatenate into '{self.into}'"):
            return dict(data)
        parts = [self._part(data[name]) for name in self.names]
        joined = jnp.concatenate(parts, axis=-1 if self.axis is None else self.axis)
        return with_entry(without(data, self.names), self.into, joined)

    def inverse(self, data: Data) -> dict[str, Array]:
        if self.into not in data:
            return dict(data)
        if self.shapes is None:
            raise RuntimeError(
                f"Adapter: to take '{self.into}' apart into {list(self.names)}, their shapes are "
                "needed. Call `adapter.bind(draws)` with simulations first."
            )
        parts = self._split(data[self.into], self.shapes)
        return without(data, [self.into]) | dict(zip(self.names, parts, strict=True))

    def log_det_jac(self, data: Data) -> Array:
        return jnp.zeros(())

    def bind(self, shapes: Shapes, draws: Callable[[], Draws]) -> "Concatenate":
        if any(name not in shapes for name in self.names):
            return self
        return replace(self, shapes=tuple(shapes[name].shape for name in self.names))

    def describe(self) -> list[str]:
        how = "flattened and joined" if self.axis is None else f"joined along axis {self.axis}"
        return [f"{', '.join(self.names)}: {how} into {self.into}"]

    def _part(self, x: Array) -> Array:
        return jnp.ravel(x) if self.axis is None else jnp.atleast_1d(x)

    def _split(self, joined: Array, shapes: Sequence[tuple[int, ...]]) -> list[Array]:
        if self.axis is None:
            parts = jnp.split(joined, np.cumsum([prod(shape) for shape in shapes])[:-1])
            return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]
        sizes = [shape[self.axis] if shape else 1 for shape in shapes]
        parts = jnp.split(joined, np.cumsum(sizes)[:-1], axis=self.axis)
        # other axes may have another length than when bound: those of sets of varying size
        return [part if shape else part[0] for part, shape in zip(parts, shapes, strict=True)]


@final
@dataclass(frozen=True)
class Split(Bijection):
    """Take an entry apart along an axis.

    :param name: the entry.
    :param into: names of the parts.
    :param indices_or_sections: as for :func:`jax.numpy.split`.
    :param axis: of a value.
    """

    name: str
    into: tuple[str, ...]
    indices_or_sections: int | tuple[int, ...]
    axis: int = -1

    @property
    def names(self) -> tuple[str, ...]:
        """The entry that the step reads."""
        return (self.name,)

    def forward(self, data: Data) -> dict[str, Array]:
        if self.name not in data:
            return dict(data)
        cuts = self.indices_or_sections
        parts = jnp.split(data[self.name], cuts if isinstance(cuts, int) else list(cuts), self.axis)
        if len(parts) != len(self.into):
            raise ValueError(
                f"Adapter: split '{self.name}': expected {len(self.into)} parts for "
                f"{list(self.into)}, got {len(parts)} from {cuts}."
            )
        result = without(data, [self.name])
        for name, part in zip(self.into, parts, strict=True):
            result = with_entry(result, name, part)
        return result

    def inverse(self, data: Data) -> dict[str, Array]:
        if not all_or_none(data, self.into, f"undo the split of '{self.name}'"):
            return dict(data)
        joined = jnp.concatenate([data[name] for name in self.into], axis=self.axis)
        return without(data, self.into) | {self.name: joined}

    def log_det_jac(self, data: Data) -> Array:
        return jnp.zeros(())

    def describe(self) -> list[str]:
        return [f"{self.name}: split along axis {self.axis} into {', '.join(self.into)}"]
