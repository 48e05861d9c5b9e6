# SPDX-License-Identifier: Apache-2.0
"""A guide's sites where the model sees some of the groups at a time."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from flax import nnx
from jax import Array
from numpyro import handlers
from numpyro.distributions import constraints

from numpyro_amortized.adapters.latents import UnconstrainLatents
from numpyro_amortized.networks.base import DensityNetwork

if TYPE_CHECKING:
    from numpyro_amortized.approximators.density import DensityApproximator

__all__ = ["sample_minibatch"]

_AUXILIARY = {"is_auxiliary": True}


class _Conditional(dist.Distribution):
    """The density of a network given its context, shape ``(*batch, condition_size)``."""

    support = constraints.real_vector
    has_rsample = True

    def __init__(self, network: DensityNetwork, context: Array) -> None:
        self.network, self.context = network, context
        super().__init__(context.shape[:-1], (network.size,))

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        context = jnp.broadcast_to(self.context, (*sample_shape, *self.context.shape))
        return self.network.sample(key, context)

    def sample_with_intermediates(
        self, key: Array, sample_shape: tuple[int, ...] = ()
    ) -> tuple[Array, list[Array]]:
        context = jnp.broadcast_to(self.context, (*sample_shape, *self.context.shape))
        draws, log_prob = self.network.sample_and_log_prob(key, context)
        return draws, [log_prob]

    def log_prob(self, value: Array, intermediates: Sequence[Array] | None = None) -> Array:
        if intermediates:
            return intermediates[0]
        return self.network.log_prob(value, self.context)


def sample_minibatch(
    prefix: str,
    approximator: "DensityApproximator",
    modules: nnx.Dict,
    given: Mapping[str, Array],
    plate: numpyro.plate,
    event_dims: Mapping[str, int],
) -> dict[str, Array]:
    """The global latents given all data, and those of the groups in a subsampled plate.

    The sites of the groups stand in the plate, so that their log densities are scaled as those of
    the model are.

    :param prefix: of the guide's own sites.
    :param approximator: of a posterior that factorizes over the groups of the plate.
    :param modules: its networks.
    :param given: the whole data set.
    :param plate: with the indices of the groups.
    :param event_dims: number of event dimensions of each latent site.
    :return: values of the latent sites, those of the groups in the plate for local ones.
    """
    groups, network = approximator.adapter.groups, modules["inference_network"]
    assert groups is not None
    with handlers.block():
        context = approximator.context(modules, dict(given))
    shared = _Conditional(network.globals, network.global_context(context))
    own = numpyro.sample(f"_{prefix}_latent", shared, infer=_AUXILIARY)
    with plate as index:
        local = network.local_context(own, context, index)
        lead = (len(index), *(1 for _ in range(-plate.dim - 1)))
        each = _Conditional(network.locals, local.reshape(*lead, -1))
        rows = numpyro.sample(f"_{prefix}_{plate.name}_latent", each, infer=_AUXILIARY)
    with handlers.block():  # the adapter runs the model
        # groups that are not drawn are anywhere: no other depends on them
        of_all = jnp.zeros((groups.factors.num_groups, network.local_size), rows.dtype)
        of_all = of_all.at[index].set(rows.reshape(len(index), -1))
        values, log_dets = _latents(approximator, jnp.concatenate([own, of_all.ravel()]), given)
    axes, result = groups.latent_axes(approximator.sites), {}
    for name in groups.factors.global_sites:
        delta = dist.Delta(values[name], log_dets[name], event_dim=event_dims[name])
        result[name] = numpyro.sample(name, delta)
    with plate:
        for name, axis in axes.items():
            value, log_det = (jnp.take(x, index, axis) for x in (values[name], log_dets[name]))
            result[name] = numpyro.sample(name, dist.Delta(value, log_det, event_dims[name]))
    return result


def _latents(
    approximator: "DensityApproximator", vector: Array, given: Mapping[str, Array]
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Latents, and the log-determinant of each of its batch shape."""
    values = approximator.latents_at(vector, given)
    latents = {name: values[name] for name in approximator.inferred_sites}
    [bijection] = [t for t in approximator.adapter.transforms if isinstance(t, UnconstrainLatents)]
    return latents, bijection.log_dets({**latents, **given})
