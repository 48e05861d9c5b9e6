# SPDX-License-Identifier: Apache-2.0
"""Bijections between entries and dicts of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, final

import jax.numpy as jnp
from jax import Array

from numpyro_amortized.adapters.base import Bijection, Data, Draws
from numpyro_amortized.adapters.binding import Bindable, Shapes
from numpyro_amortized.adapters.entries import with_entry, without


@final
@dataclass(frozen=True)
class Group(Bijection):
    """Collect entries in one entry that is a dict of them.

    :param names: the entries.
    :param into: name of the dict.
    :param prefix: of all names, left out inside the dict.
    """

    names: tuple[str, ...]
    into: str
    prefix: str = ""

    def __post_init__(self) -> None:
        wrong = [name for name in self.names if not name.startswith(self.prefix)]
        if wrong:
            raise ValueError(
                f"Adapter: group: expected names that begin with '{self.prefix}', got {wrong}."
            )

    def forward(self, data: Data) -> dict[str, Array]:
        own = {n.removeprefix(self.prefix): data[n] for n in self.names if n in data}
        return with_entry(without(data, self.names), self.into, own) if own else dict(data)

    def inverse(self, data: Data) -> dict[str, Array]:
        return _ungrouped(data, self.into, self.prefix)

    def log_det_jac(self, data: Data) -> Array:
        return jnp.zeros(())

    def describe(self) -> list[str]:
        return [f"{', '.join(self.names)}: grouped into {self.into}"]


@final
@dataclass(frozen=True)
class Ungroup(Bijection, Bindable):
    """Make entries of the members of an entry that is a dict.

    :param name: the dict.
    :param prefix: put before the names of its members.
    :param members: their names, known once bound.
    """

    name: str
    prefix: str = ""
    members: tuple[str, ...] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The entry that the step reads."""
        return (self.name,)

    def forward(self, data: Data) -> dict[str, Array]:
        return _ungrouped(data, self.name, self.prefix)

    def inverse(self, data: Data) -> dict[str, Array]:
        if self.members is None:
            raise RuntimeError(
                f"Adapter: the members of '{self.name}' are not known yet. Call "
                "`adapter.bind(draws)` with simulations first."
            )
        own = {m: data[self.prefix + m] for m in self.members if self.prefix + m in data}
        rest = without(data, [self.prefix + member for member in self.members])
        return with_entry(rest, self.name, own) if own else rest

    def log_det_jac(self, data: Data) -> Array:
        return jnp.zeros(())

    def bind(self, shapes: Shapes, draws: Callable[[], Draws]) -> "Ungroup":
        if self.name not in shapes:
            return self
        if not isinstance(shapes[self.name], Mapping):
            raise ValueError(f"Adapter: ungroup: expected '{self.name}' to be a dict of entries.")
        return replace(self, members=tuple(shapes[self.name]))

    def describe(self) -> list[str]:
        return [f"{self.name}: its members become entries {self.prefix}..."]


def _ungrouped(data: Data, name: str, prefix: str) -> dict[str, Array]:
    if name not in data:
        return dict(data)
    result = without(data, [name])
    members: Any = data[name]
    for member, value in members.items():
        result = with_entry(result, prefix + member, value)
    return result
