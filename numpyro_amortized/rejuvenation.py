# SPDX-License-Identifier: Apache-2.0
"""Fresh latents for the simulations of a bank, where the model's density is known.

A simulation is a draw of ``p(latents, observed)``, so its latents are already a draw of their
posterior: any Markov kernel that leaves ``p(latents | observed)`` invariant turns it into another
exact draw of the joint distribution, without burn-in and without simulating [1, 2]. Moving the
latents in every epoch keeps a network from learning those of a small bank by heart.

**References**

1. *Following a moving target: Monte Carlo inference for dynamic Bayesian models*, Gilks and
   Berzuini (2001): moves of draws that are exact already.
2. *Getting it right: joint distribution tests of posterior simulators*, Geweke (2004).
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array, lax, random

from numpyro_amortized.adapters.adapter import Adapter
from numpyro_amortized.adapters.latents import UnconstrainLatents, unconstrain_latents
from numpyro_amortized.random_walk import random_walk
from numpyro_amortized.simulators.model import ModelSimulator
from numpyro_amortized.simulators.tracing import has_bijection

Values = dict[str, Array]
_SMALLEST_STEP = 3e-3  # in standardized units of the prior; the largest is 1


class Chains(NamedTuple):
    """One Markov chain for each simulation of a bank."""

    position: Array  # unconstrained latents, shape (num_simulations, size)
    log_density: Array  # shape (num_simulations,)
    rest: Values  # what stays: observed sites and discrete latents


class Rejuvenation:
    """Random-walk Metropolis moves of all continuous latents given everything else.

    Steps are of random size, log-uniform: posteriors may be of any width, no tuning is needed, and
    the kernel depends on nothing but the model, as exactness demands.

    :param latents: the bijection of all continuous latents of a model.
    """

    def __init__(self, latents: UnconstrainLatents) -> None:
        self.simulator = latents.simulator
        self.latents = latents

    @staticmethod
    def of(simulator: ModelSimulator, adapter: Adapter, bank: Values) -> "Rejuvenation":
        """The moves for a bank; the bijection is the adapter's where that has all latents."""
        names = continuous_latents(simulator)
        for transform in adapter.transforms:
            if isinstance(transform, UnconstrainLatents) and transform.names == names:
                return Rejuvenation(transform)
        return Rejuvenation(unconstrain_latents(simulator, names, bank))

    def start(self, bank: Values) -> Chains:
        """Chains at the latents of a bank, values ``(num_simulations, *shape)``."""
        names = self.latents.names
        rest = {
            site.name: bank[site.name]
            for site in self.simulator.sites.values()
            if site.name not in names and site.role != "deterministic"
        }

        def one(latents: Values, rest: Values) -> tuple[Array, Array]:
            position = self.latents.forward(latents)["inference_variables"]
            return position, self._log_density(position, rest)

        position, log_density = jax.vmap(one)({name: bank[name] for name in names}, rest)
        return Chains(position, log_density, rest)

    def move(self, rng_key: Array, chains: Chains, num_moves: int) -> Chains:
        """Move every chain; pure and traceable."""
        step = jax.vmap(self._step)
        keys = random.split(rng_key, (num_moves, len(chains.position)))

        def body(state: tuple[Array, Array], keys: Array) -> tuple[tuple[Array, Array], None]:
            return step(keys, *state, chains.rest), None

        (position, log_density), _ = lax.scan(body, (chains.position, chains.log_density), keys)
        return Chains(position, log_density, chains.rest)

    def values(self, chains: Chains) -> Values:
        """Site values at the chains' positions, ``(num_simulations, *shape)``."""
        inverse = jax.vmap(lambda z: self.latents.inverse({"inference_variables": z}))
        return inverse(chains.position) | chains.rest

    def _step(
        self, rng_key: Array, position: Array, log_density: Array, rest: Values
    ) -> tuple[Array, Array]:
        density = partial(self._log_density, rest=rest)
        return random_walk(rng_key, position, log_density, density, smallest_step=_SMALLEST_STEP)

    def _log_density(self, position: Array, rest: Values) -> Array:
        """Log joint density in the unconstrained space."""
        latents = self.latents.inverse({"inference_variables": position})
        trace = self.simulator.trace(random.key(0), latents | rest)
        terms = [
            jnp.sum(_unmasked(trace[site.name]["fn"]).log_prob(trace[site.name]["value"]))
            for site in self.simulator.sites.values()
            if site.is_random
        ]
        log_density = sum(terms) - self.latents.log_det_jac(latents)
        return jnp.where(jnp.isnan(log_density), -jnp.inf, log_density)


def continuous_latents(simulator: ModelSimulator) -> tuple[str, ...]:
    """Names of the continuous latent sites."""
    return tuple(
        site.name
        for site in simulator.sites.values()
        if site.role == "latent" and jnp.issubdtype(site.dtype, jnp.floating)
    )


def has_density(simulator: ModelSimulator) -> bool:
    """Whether the joint density of a simulation is known, and there are latents to move."""
    names = continuous_latents(simulator)
    return (
        bool(names)
        and simulator.varying_size is None
        and all(s.has_density for s in simulator.sites.values() if s.is_random)
        and all(has_bijection(simulator.sites[name].support) for name in names)
    )


def _unmasked(fn: dist.Distribution) -> dist.Distribution:
    """Simulations draw masked entries as all others."""
    return fn.base_dist if isinstance(fn, dist.MaskedDistribution) else fn
