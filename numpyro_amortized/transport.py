# SPDX-License-Identifier: Apache-2.0
"""The flow from a standard normal to the posterior of one data set, in NumPyro's own space."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, final

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array, random
from jax.scipy import stats
from numpyro.distributions import biject_to, constraints
from numpyro.distributions.transforms import Transform

from numpyro_amortized.adapters.latents import SiteMap, UnconstrainLatents
from numpyro_amortized.simulators.model import ModelSimulator

if TYPE_CHECKING:
    from numpyro_amortized.approximators.density import DensityApproximator

__all__ = ["PosteriorFlow", "unconstrained_space"]

Values = Mapping[str, Array]


def unconstrained_space(approximator: "DensityApproximator") -> UnconstrainLatents:
    """The bijection of the inferred latents that NumPyro's algorithms use, by their supports.

    :param approximator: of a model's posterior.
    :raises ValueError: where there is no model.
    """
    source = approximator.source
    if not isinstance(source, ModelSimulator):
        raise ValueError(
            "AmortizedGuide: expected an approximator of a NumPyro model, got one of "
            f"{type(source).__name__}."
        )
    maps: list[SiteMap] = []

    def read(rng_key: Array) -> None:  # traced for types and shapes alone: nothing is computed
        trace = source.trace(rng_key)
        for name in approximator.inferred_sites:
            shape = biject_to(trace[name]["fn"].support).inverse_shape(source.sites[name].shape)
            maps.append(SiteMap(name, tuple(shape), by_prior=False, support=None))

    jax.eval_shape(read, random.key(0))
    size = sum(int(np.prod(m.shape)) for m in maps)
    context = tuple(s.name for s in source.sites.values() if s.role == "context")
    return UnconstrainLatents(
        source, tuple(maps), np.zeros(size), np.ones(size), np.zeros(size, bool), context
    )


@final
class PosteriorFlow(Transform):
    """Standard normal vectors to the unconstrained latents of a model, given one data set.

    Supports that depend on other sites are those at the values of these.

    :param approximator: of a model's posterior, of the data's number of groups.
    :param modules: its networks.
    :param given: one data set.
    :param space: that of :func:`unconstrained_space`.
    :raises ValueError: where the network is no flow from a normal distribution.
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector

    def __init__(
        self,
        approximator: "DensityApproximator",
        modules: nnx.Dict,
        given: Values,
        space: UnconstrainLatents,
    ) -> None:
        self.approximator, self.given, self.space = approximator, dict(given), space
        self.network: Any = approximator.density(modules)
        if not hasattr(self.network, "transport"):
            raise ValueError(
                "AmortizedGuide: expected an inference network that carries a normal distribution "
                f"to the posterior, got {type(self.network).__name__}. Train a CouplingFlow, "
                "FlowMatching or DiffusionModel."
            )
        self.context = approximator.context(modules, self.given)

    def __call__(self, x: Array) -> Array:
        return self._carried(x)[0]

    def log_abs_det_jacobian(self, x: Array, y: Array, intermediates: Any = None) -> Array:
        return self._carried(x)[1]

    def _carried(self, x: Array) -> tuple[Array, Array]:
        """Unconstrained latents, and the log-determinants."""
        variables, log_q = self.network.transport(x, self.context)
        # the normal density, less that of what it was carried to
        log_det = stats.norm.logpdf(x).sum(-1) - log_q
        vectors, more = jnp.vectorize(self._to_space, signature="(d)->(d),()")(variables)
        return vectors, log_det + more

    def _to_space(self, variables: Array) -> tuple[Array, Array]:
        """From one vector of the networks' space."""
        data = {**self.approximator.latents_at(variables, self.given), **self.given}
        vector = self.space.forward(data)["inference_variables"]
        own = self.approximator.adapter.log_det_jac(data)
        return vector, self.space.log_det_jac(data) - own
