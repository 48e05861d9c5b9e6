# SPDX-License-Identifier: Apache-2.0
"""Choosing the entries of a step by name, type or predicate."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import jax
from jax import Array

from numpyro_amortized.adapters.base import Data, Draws, Transform
from numpyro_amortized.adapters.binding import Bindable, Shapes, shapes_of

Names = str | Sequence[str]
Predicate = Callable[[str, jax.ShapeDtypeStruct], bool]


def as_names(names: Names) -> tuple[str, ...]:
    """One name, or several.

    :raises TypeError: for anything else.
    """
    if isinstance(names, str):
        return (names,)
    if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"Adapter: expected the name of an entry, or several, got {names!r}.")
    return tuple(names)


@final
@dataclass(frozen=True)
class Filter:
    """Which entries a step is for.

    :param include: their names, by default all.
    :param exclude: names that are left out.
    :param predicate: further condition on an entry's name and its shape and type.
    :param dtype: their type.
    """

    include: tuple[str, ...] | None = None
    exclude: tuple[str, ...] = ()
    predicate: Predicate | None = None
    dtype: str | None = None

    def choose(self, shapes: Shapes) -> tuple[str, ...]:
        """The names chosen."""
        return tuple(name for name, struct in shapes.items() if self._accepts(name, struct))

    def __str__(self) -> str:
        parts = ["all entries" if self.include is None else ", ".join(self.include)]
        parts += [f"but {', '.join(self.exclude)}"] if self.exclude else []
        parts += [f"of type {self.dtype}"] if self.dtype else []
        if self.predicate is not None:
            parts.append(f"where {getattr(self.predicate, '__name__', self.predicate)}")
        return " ".join(parts)

    def _accepts(self, name: str, struct: jax.ShapeDtypeStruct) -> bool:
        if name in self.exclude or (self.include is not None and name not in self.include):
            return False
        if isinstance(struct, Mapping):
            return False
        if self.dtype is not None and struct.dtype.name != self.dtype:
            return False
        return self.predicate is None or bool(self.predicate(name, struct))


@final
@dataclass(frozen=True)
class Filtered(Bindable):
    """A step for the entries that a filter chooses; binding chooses them for good.

    :param entries: the filter.
    :param make: from the names chosen to the step.
    :param label: what the step does.
    """

    entries: Filter
    make: Callable[[tuple[str, ...]], Transform]
    label: str

    @property
    def names(self) -> tuple[str, ...]:
        """The entries that must be there."""
        return self.entries.include or ()

    def forward(self, data: Data) -> dict[str, Array]:
        return self.make(self.entries.choose(shapes_of(data))).forward(data)

    def bind(self, shapes: Shapes, draws: Callable[[], Draws]) -> Transform:
        step = self.make(self.entries.choose(shapes))
        return step.bind(shapes, draws) if isinstance(step, Bindable) else step

    def describe(self) -> list[str]:
        return [f"{self.entries}: {self.label}"]
