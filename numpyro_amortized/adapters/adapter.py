# SPDX-License-Identifier: Apache-2.0
"""Adapters: sites to network inputs and back."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, final

import jax
import jax.numpy as jnp
from jax import Array

from numpyro_amortized.adapters.base import Bijection, Data, Draws, Transform

if TYPE_CHECKING:
    from numpyro_amortized.simulators.model import ModelSimulator


@final
class Adapter:
    """A chain of transforms from the values of sites to the inputs of networks.

    An adapter is never changed: :meth:`append` returns a longer one.

    :param transforms: the steps, in order.
    :param ranks: number of axes of one value of each entry, before and after; further leading axes
        are a batch. Entries that are not named have no batch axes of their own.
    """

    def __init__(
        self, transforms: Sequence[Transform] = (), *, ranks: Mapping[str, int] | None = None
    ) -> None:
        self.transforms = tuple(transforms)
        self.ranks = dict(ranks or {})

    @staticmethod
    def for_posterior(
        simulator: "ModelSimulator",
        *,
        sites: Sequence[str] | None = None,
        sets: Mapping[str, int | None] | None = None,
        prior_to_normal: bool = True,
        pilot: Draws | None = None,
    ) -> "Adapter":
        """The adapter for the posterior of the latent sites given the observed ones.

        :param simulator: a traced model.
        :param sites: the latent sites to infer, by default all continuous ones; the others are
            marginalized by simulation.
        :param sets: overrides whether an observed site is a set: the axis of its members, or
            ``None`` for numbers in their order. By default a site is a set exactly if permuting
            its members alone leaves the model's log density unchanged.
        :param prior_to_normal: whether latents are mapped by the CDF of their prior where it has
            an accurate one, which makes the prior of the network's variables N(0, I); otherwise
            by the bijection of their support.
        :param pilot: draws from the simulator that fix moments and decisions, by default 2,000.
        :return: an adapter to ``inference_variables``, and ``inference_conditions`` or
            ``summary_variables``.
        :raises ValueError: where a site is unknown, or cannot be inferred.
        """
        from numpyro_amortized.adapters.posterior import posterior_adapter

        return posterior_adapter(
            simulator, sites=sites, sets=sets, prior_to_normal=prior_to_normal, pilot=pilot
        )

    def append(self, transform: Transform) -> "Adapter":
        """An adapter with one more step."""
        return Adapter((*self.transforms, transform), ranks=self.ranks)

    def __call__(self, data: Data) -> dict[str, Array]:
        """The same as :meth:`forward`."""
        return self.forward(data)

    def forward(self, data: Data) -> dict[str, Array]:
        """Network inputs, with the leading batch axes of ``data``."""
        return self._batched(self._forward, data)

    def inverse(self, data: Data) -> dict[str, Array]:
        """Values of the latent sites from ``inference_variables``; other steps are not undone."""
        return self._batched(self._inverse, data)

    def log_det_jac(self, data: Data) -> Array:
        """Log absolute determinant of the Jacobian of :meth:`forward`, one for each batch entry."""
        return self._batched(self._log_det_jac, data)

    def __str__(self) -> str:
        return "\n".join(line for transform in self.transforms for line in transform.describe())

    def _forward(self, data: Data) -> dict[str, Array]:
        for transform in self.transforms:
            data = transform.forward(data)
        return dict(data)

    def _inverse(self, data: Data) -> dict[str, Array]:
        for transform in reversed(self.transforms):
            if isinstance(transform, Bijection):
                data = transform.inverse(data)
        return dict(data)

    def _log_det_jac(self, data: Data) -> Array:
        total = jnp.zeros(())
        for transform in self.transforms:
            if isinstance(transform, Bijection):
                total += transform.log_det_jac(data)
            data = transform.forward(data)
        return total

    def _batched[T](self, function: Callable[[Data], T], data: Data) -> T:
        arrays = {name: jnp.asarray(value) for name, value in data.items()}
        depths = {n: a.ndim - self.ranks.get(n, a.ndim) for n, a in arrays.items()}
        if len(set(depths.values())) > 1 or min(depths.values(), default=0) < 0:
            got = {name: array.shape for name, array in arrays.items()}
            raise ValueError(
                f"Adapter: expected the same leading batch axes before values of ranks "
                f"{ {n: self.ranks.get(n) for n in arrays} }, got shapes {got}."
            )
        for _ in range(max(depths.values(), default=0)):
            function = jax.vmap(function)
        return function(arrays)
