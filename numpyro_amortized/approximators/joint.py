# SPDX-License-Identifier: Apache-2.0
"""The model's joint density of the inferred latents and the data."""

from collections.abc import Callable, Sequence
from functools import cached_property

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array, random

from numpyro_amortized.approximators.conditions import map_in_chunks
from numpyro_amortized.approximators.enumeration import Terms, Values, enumerated
from numpyro_amortized.simulators.model import ModelSimulator
from numpyro_amortized.simulators.tracing import Site

__all__ = ["JointDensity"]


class JointDensity:
    """``log p(latents, data)``, with discrete latents that are not inferred summed out.

    Masked observations are no part of it. Latents have their prior under a mask too, as in the
    simulations that the approximator has learned from, so that the evidence is that of the data.

    :param simulator: the traced model, of one size.
    :param inferred: names of the inferred latents.
    :raises ValueError: where the density is not known, with the site and the reason.
    """

    def __init__(self, simulator: ModelSimulator, inferred: Sequence[str]) -> None:
        self.simulator = simulator
        random_sites = [site for site in simulator.sites.values() if site.is_random]
        _refuse_implicit(simulator)
        left_out = [s for s in random_sites if s.role == "latent" and s.name not in inferred]
        _refuse_continuous(left_out)
        self._random_sites = random_sites
        names = tuple(site.name for site in left_out)
        self._log_density = enumerated(simulator, names, self._terms) if names else self._total

    def __call__(self, latents: Values, given: Values) -> Array:
        """Log joint density, a scalar; pure and traceable.

        :param latents: the inferred latents, of the sites' own shapes.
        :param given: the observed sites and the context.
        """
        log_density = self._log_density(latents, given)
        return jnp.where(jnp.isnan(log_density), -jnp.inf, log_density)

    @cached_property
    def of_draws(self) -> Callable[[Values, Values], Array]:
        """For latents ``(num_conditions, num_samples, *shape)``; compiled once."""

        def of_draws(latents: Values, given: Values) -> Array:
            num_samples = next(iter(latents.values())).shape[1]
            each = jax.vmap(self, in_axes=(0, None))
            return map_in_chunks(each, (latents, given), max(1, _ROWS // num_samples))

        return jax.jit(of_draws)

    def _total(self, latents: Values, given: Values) -> Array:
        return sum((jnp.sum(term) for term in self._terms(latents, given).values()), jnp.zeros(()))

    def _terms(self, latents: Values, given: Values) -> Terms:
        """Log densities of all random sites, each of its batch shape."""
        trace = self.simulator.trace(random.key(0), {**latents, **given})
        return {
            s.name: _counted(s, trace[s.name]["fn"]).log_prob(trace[s.name]["value"])
            for s in self._random_sites
        }


_ROWS = 2**16  # draws at a time, which bounds memory


def _counted(site: Site, fn: dist.Distribution) -> dist.Distribution:
    """What of a distribution counts: masks take away data, but not priors."""
    if site.role == "latent" and isinstance(fn, dist.MaskedDistribution):
        return fn.base_dist
    return fn


def _refuse_implicit(simulator: ModelSimulator) -> None:
    observed = [s for s in simulator.sites.values() if s.role == "observed"]
    for site in [s for s in simulator.sites.values() if s.is_random] + observed:
        if not site.has_density:
            raise ValueError(
                f"Site '{site.name}' is {site.role}, but computed from other sites: its density is "
                "not known, so weights cannot be computed. Give it a distribution in the model."
            )


def _refuse_continuous(left_out: Sequence[Site]) -> None:
    names = [s.name for s in left_out if jnp.issubdtype(s.dtype, jnp.floating)]
    if names:
        raise ValueError(
            f"Sites {names} are latent, but not inferred: the density of the data without them is "
            "an integral that is not known. Infer them too: Adapter.for_posterior(simulator) "
            "without `sites`."
        )
