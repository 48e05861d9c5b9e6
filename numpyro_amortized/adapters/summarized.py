# SPDX-License-Identifier: Apache-2.0
"""What is summarized before it is conditioned on."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from numpyro_amortized.adapters.base import Data, Transform
from numpyro_amortized.adapters.one_way import AsSet, AsTimeSeries
from numpyro_amortized.simulators.varying_size import VaryingSize

__all__ = ["CollectSummaries", "Collection", "Structure", "Summarized", "structures_of"]


class Structure(Enum):
    """How the members of what is summarized are arranged."""

    SET = "a set"
    SERIES = "a time series"
    IMAGE = "an image"
    GROUPS = "a set of groups"


class Summarized(NamedTuple):
    """
    Observed sites that one network summarizes together, as features of the same members.

    ``axes`` are those of the members, steps or cells in each site; all other axes are features.
    """

    structure: Structure
    axes: Mapping[str, tuple[int, ...]]
    shape: tuple[int, ...]  # numbers of members along them
    reason: str

    @property
    def name(self) -> str:
        """That of the first site."""
        return next(iter(self.axes))

    def collect(self, data: Data) -> Array:
        """Shape ``(*shape, features)``."""
        parts = [
            jnp.moveaxis(data[name], axes, range(len(axes))).reshape(*self.shape, -1)
            for name, axes in self.axes.items()
        ]
        return jnp.concatenate(parts, axis=-1)

    def varying_axes(self, varying: VaryingSize | None) -> tuple[int, ...]:
        """Which of the axes of ``shape`` have the size that varies."""
        if varying is None:
            return ()
        own = {
            axes.index(axis)
            for name, axes in self.axes.items()
            for axis in varying.axes.get(name, ())
            if axis in axes
        }
        return tuple(sorted(own))

    def mask(self, within: Array, axes: Sequence[int]) -> Array:
        """Booleans, of shape ``shape``: which members are within the size of a simulation."""
        mask = jnp.ones(self.shape, bool)
        for axis in axes:
            mask &= jnp.expand_dims(within, [k for k in range(mask.ndim) if k != axis])
        return mask

    def describe(self) -> str:
        """The sites, what they make, and why."""
        sites, size = ", ".join(self.axes), " x ".join(map(str, self.shape))
        match self.structure:
            case Structure.SET:
                kind = "one set of members"
            case Structure.SERIES:
                kind = f"a time series of {size} steps"
            case Structure.IMAGE:
                kind = f"an image of {size} cells"
            case Structure.GROUPS:
                kind = "one set of groups"
        return f"{sites}: {kind}, summarized: {self.reason}"


class Collection(Transform):
    """A step that makes ``summary_variables`` of observed sites."""

    @property
    @abstractmethod
    def structures(self) -> dict[str, Structure]:
        """The structure of each array, by name."""


class CollectSummaries(Collection):
    """Observed sites to ``summary_variables``: an array, or a dict of several by name.

    Members beyond the size of a simulation are false in ``summary_mask``, of the same form.

    :param groups: the sites of each array.
    :param varying: the size that varies, if one does.
    """

    def __init__(self, groups: Sequence[Summarized], varying: VaryingSize | None) -> None:
        self.groups = tuple(groups)
        self.varying = varying

    @property
    def structures(self) -> dict[str, Structure]:
        return {group.name: group.structure for group in self.groups}

    def forward(self, data: Data) -> dict[str, Any]:
        sites = {name for group in self.groups for name in group.axes}
        if not all(name in data for name in sites):
            return dict(data)
        entries = {"summary_variables": {group.name: group.collect(data) for group in self.groups}}
        entries |= {"summary_mask": self._masks(data)}
        rest = {name: value for name, value in data.items() if name not in sites}
        if len(self.groups) > 1:
            return rest | {name: arrays for name, arrays in entries.items() if arrays}
        [group] = self.groups
        return rest | {name: arrays[group.name] for name, arrays in entries.items() if arrays}

    def describe(self) -> list[str]:
        return [group.describe() for group in self.groups]

    def _masks(self, data: Data) -> dict[str, Array]:
        if self.varying is None or self.varying.name not in data:
            return {}
        within = jnp.arange(self.varying.high) < data[self.varying.name]
        axes = {group.name: group.varying_axes(self.varying) for group in self.groups}
        return {g.name: g.mask(within, axes[g.name]) for g in self.groups if axes[g.name]}


def structures_of(steps: Sequence[Transform], outputs: Mapping[str, Any]) -> dict[str, Structure]:
    """The structure of each array that is summarized.

    In a chain that was written by hand, what has two or more axes of cells is an image, and the
    rest is a set, or a series where the chain makes series and no sets.

    :param steps: those of an adapter.
    :param outputs: shapes of its outputs.
    :return: by name; that of a single array is ``"summary_variables"`` unless it was derived.
    """
    for step in steps:
        if isinstance(step, Collection):
            return step.structures
    summarized = outputs.get("summary_variables", {})
    arrays = summarized if isinstance(summarized, Mapping) else {"summary_variables": summarized}
    return {name: _written_structure(steps, name, array) for name, array in arrays.items()}


def _written_structure(
    steps: Sequence[Transform], name: str, struct: jax.ShapeDtypeStruct
) -> Structure:
    if len(struct.shape) > 2:
        return Structure.IMAGE
    series = [each for step in steps if isinstance(step, AsTimeSeries) for each in step.names]
    has_sets = any(isinstance(step, AsSet) for step in steps)
    return Structure.SERIES if name in series or (series and not has_sets) else Structure.SET
