# SPDX-License-Identifier: Apache-2.0
"""A learned likelihood as a NumPyro distribution."""

from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from flax import nnx
from jax import Array
from numpyro.distributions import constraints
from numpyro.distributions.util import validate_sample

from numpyro_amortized.adapters.observed_variables import ObservedMap
from numpyro_amortized.networks.mixed import Mixed


class FrozenLikelihood:
    """The network as trained at one time, for one site; compared by identity, as static data.

    :param observed: the maps of the observed sites.
    :param index: which of them this is.
    """

    def __init__(
        self,
        graphdef: nnx.GraphDef,
        state: nnx.State,
        observed: tuple[ObservedMap, ...],
        index: int,
    ) -> None:
        self._graphdef, self._state = graphdef, state
        self.observed = observed[index]
        ends = [0]
        for one in observed[: index + 1]:
            ends.append(ends[-1] + len(one.parts))
        self.first, self.last = ends[-2:]

    @property
    def network(self) -> Mixed:
        """The network with the parameters of that time."""
        return nnx.merge(self._graphdef, self._state)


class NeuralLikelihood(dist.Distribution):
    """Distribution of one observed site given the latents and the observed sites before it.

    Made by :meth:`ContinuousApproximator.likelihood`. Its density has gradients in the latents;
    the networks are those of the time at which it was made.

    :param context: encoded latents, shape ``(*batch, condition_size)``.
    :param earlier: variables of the observed sites before, shape ``(*batch, size)``.
    :param frozen: the trained network.
    """

    arg_constraints = {  # noqa: RUF012
        "context": constraints.real_vector,
        "earlier": constraints.real_vector,
    }
    reparametrized_params = ["context", "earlier"]  # noqa: RUF012
    pytree_data_fields = ("context", "earlier")
    pytree_aux_fields = ("frozen",)

    def __init__(
        self,
        context: Array,
        earlier: Array,
        frozen: FrozenLikelihood,
        *,
        validate_args: bool | None = None,
    ) -> None:
        self.context, self.earlier, self.frozen = context, earlier, frozen
        batch = jnp.broadcast_shapes(context.shape[:-1], earlier.shape[:-1])
        super().__init__(batch, frozen.observed.shape, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> constraints.Constraint:
        """That of the site."""
        site = self.frozen.observed
        missing = len(site.shape) - site.support.event_dim
        return constraints.independent(site.support, missing) if missing else site.support

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        """Observations, shape ``(*sample_shape, *batch, *event)``."""
        shape = (*sample_shape, *self.batch_shape)
        context, earlier = (
            jnp.broadcast_to(x, (*shape, x.shape[-1])) for x in (self.context, self.earlier)
        )
        frozen = self.frozen
        draws = frozen.network.partial_sample(key, earlier, context, frozen.first, frozen.last)
        own = draws[..., earlier.shape[-1] :]
        return _over_batch(frozen.observed.inverse, own, 1)

    @validate_sample
    def log_prob(self, value: Array, intermediates: Any = None) -> Array:
        """Log density, in the site's own space, shape ``(*sample_shape, *batch)``."""
        frozen = self.frozen
        event_dim = len(self.event_shape)
        own, log_det = _over_batch(frozen.observed.forward, jnp.asarray(value), event_dim)
        batch = jnp.broadcast_shapes(own.shape[:-1], self.batch_shape)
        pieces = [jnp.broadcast_to(x, (*batch, x.shape[-1])) for x in (self.earlier, own)]
        variables = jnp.concatenate(pieces, axis=-1)
        log_prob = frozen.network.partial_log_prob(
            variables, self.context, frozen.first, frozen.last
        )
        return log_prob + log_det


def _over_batch(function: Any, value: Array, event_dim: int) -> Any:
    """A function of one event over all leading axes."""
    for _ in range(value.ndim - event_dim):
        function = jax.vmap(function)
    return function(value)
