# SPDX-License-Identifier: Apache-2.0
"""Steps of an adapter for groups of data with latents of their own."""

from collections.abc import Mapping
from typing import Any, NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from numpyro_amortized.adapters.base import Bijection, Data, Transform
from numpyro_amortized.adapters.exchangeability import plate_axes
from numpyro_amortized.adapters.summarized import Collection, Structure, Summarized
from numpyro_amortized.simulators.tracing import Site
from numpyro_amortized.simulators.varying_size import VaryingSize

__all__ = ["ArrangeGroups", "CollectGroups", "Factors", "OneVector"]


class Factors(NamedTuple):
    """Which latents are global and which local, and how many numbers they are."""

    global_sites: tuple[str, ...]
    local_sites: tuple[str, ...]
    num_globals: int
    num_groups: int

    def describe(self, plate: str) -> str:
        """The factors of the posterior."""
        shared, own = ", ".join(self.global_sites), ", ".join(self.local_sites)
        return (
            f"the posterior factorizes over the {self.num_groups} groups of plate '{plate}': "
            f"q({shared} | all groups) times q({own} | {shared}, own group) of each group"
        )


@final
class ArrangeGroups(Bijection):
    """Global variables first, then those of the first group, of the second and so on.

    :param order: indices into the vector of inference variables.
    """

    def __init__(self, order: np.ndarray) -> None:
        self.order = order

    def forward(self, data: Data) -> dict[str, Array]:
        return self._taken(data, self.order)

    def inverse(self, data: Data) -> dict[str, Array]:
        return self._taken(data, np.argsort(self.order))

    def log_det_jac(self, data: Data) -> Array:
        return jnp.zeros(())

    def describe(self) -> list[str]:
        return []

    def _taken(self, data: Data, order: np.ndarray) -> dict[str, Array]:
        if "inference_variables" not in data:
            return dict(data)
        return {**data, "inference_variables": data["inference_variables"][order]}


@final
class CollectGroups(Collection):
    """Observed sites to ``summary_variables``: for each group its numbers, and its sets or series.

    The numbers go by the name of the plate. Groups and members beyond the size of a simulation are
    false in ``summary_mask``.

    :param plate: its name.
    :param factors: the latents of the model.
    :param axes: observed sites and context to their axis of groups.
    :param numbers: names of those that are numbers of each group.
    :param summarized: those that are summarized within each group, with the axes of whole sites.
    :param covariates: fixed numbers of the groups, shape ``(num_groups, size)`` each, by label.
    :param varying: the size that varies, if one does.
    :param reason: why the posterior factorizes.
    """

    def __init__(
        self,
        plate: str,
        factors: Factors,
        axes: Mapping[str, int],
        numbers: tuple[str, ...],
        summarized: tuple[Summarized, ...],
        covariates: Mapping[str, np.ndarray],
        varying: VaryingSize | None,
        reason: str,
    ) -> None:
        self.plate = plate
        self.factors = factors
        self.axes = dict(axes)
        self.numbers = numbers
        self.summarized = summarized
        self.covariates = dict(covariates)
        self.varying = varying
        self.reason = reason

    @property
    def structures(self) -> dict[str, Structure]:
        own = {each.name: each.structure for each in self.summarized}
        return {self.plate: Structure.GROUPS, **own}

    @property
    def names(self) -> set[str]:
        """The sites that are collected."""
        return {*self.numbers, *(name for each in self.summarized for name in each.axes)}

    @property
    def is_varying(self) -> bool:
        """Whether the number of groups varies from simulation to simulation."""
        return self.varying is not None and any(
            axis in self.varying.axes.get(name, ()) for name, axis in self.axes.items()
        )

    def count(self, sites: Mapping[str, Site], values: Mapping[str, ArrayLike]) -> int | None:
        """The number of groups in data of any size; ``None`` where sites differ."""
        found = {
            np.shape(values[n])[axis - len(sites[n].shape)]
            for n, axis in self.axes.items()
            if n in values and np.ndim(values[n]) >= len(sites[n].shape) - axis
        }
        return found.pop() if len(found) == 1 else None

    def latent_axes(self, sites: Mapping[str, Site]) -> dict[str, int]:
        """Local latents to their axis of groups."""
        return {
            name: axis
            for name in self.factors.local_sites
            for axis, plate in plate_axes(sites[name]).items()
            if plate == self.plate
        }

    def forward(self, data: Data) -> dict[str, Any]:
        if not all(name in data for name in self.names):
            return dict(data)
        arrays = {self.plate: self._numbers(data)}
        for each in self.summarized:
            values = {name: data[name] for name in each.axes}
            axes = {name: self.axes.get(name) for name in each.axes}
            arrays[each.name] = jax.vmap(self._of_group(each).collect, in_axes=(axes,))(values)
        entries: dict[str, Any] = {"summary_variables": arrays}
        if masks := self._masks(data):
            entries["summary_mask"] = masks
        return {name: x for name, x in data.items() if name not in self.names} | entries

    def describe(self) -> list[str]:
        lines = [f"{self.factors.describe(self.plate)}: {self.reason}"]
        lines += [f"  {each.describe()}" for each in self.summarized]
        lines += [f"  {name}: numbers of each group" for name in (*self.numbers, *self.covariates)]
        return lines

    def _numbers(self, data: Data) -> Array:
        """Shape ``(num_groups, size)``."""
        num_groups = self._num_groups(data)
        parts = [
            jnp.moveaxis(data[name], self.axes[name], 0).reshape(num_groups, -1)
            for name in self.numbers
        ]
        parts += [jnp.asarray(array) for array in self.covariates.values()]
        return jnp.concatenate([jnp.zeros((num_groups, 0)), *parts], axis=-1)

    def _num_groups(self, data: Data) -> int:
        return next(data[n].shape[axis] for n, axis in self.axes.items() if n in data)

    def _of_group(self, each: Summarized) -> Summarized:
        """The same for one group, whose sites have no axis of groups."""
        axes = {
            name: tuple(a - (name in self.axes and a > self.axes[name]) for a in own)
            for name, own in each.axes.items()
        }
        return each._replace(axes=axes)

    def _masks(self, data: Data) -> dict[str, Array]:
        if self.varying is None or self.varying.name not in data:
            return {}
        within = jnp.arange(self.varying.high) < data[self.varying.name]
        if self.is_varying:
            return {self.plate: within}
        own = {each.name: (each, each.varying_axes(self.varying)) for each in self.summarized}
        lead = (self._num_groups(data),)
        return {
            name: jnp.broadcast_to(each.mask(within, axes), (*lead, *each.shape))
            for name, (each, axes) in own.items()
            if axes
        }


@final
class OneVector(Transform):
    """Says why the latents of groups are inferred as one vector; changes nothing.

    :param reason: why.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def forward(self, data: Data) -> dict[str, Array]:
        return dict(data)

    def describe(self) -> list[str]:
        return [f"all latents are inferred as one vector: {self.reason}"]
