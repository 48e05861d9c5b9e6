# SPDX-License-Identifier: Apache-2.0
"""What the model itself says at given values of the inferred latents.

Each function is for one draw; those over many draws are vectorized by their callers.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, random

from numpyro_amortized.adapters.posterior import NUM_PILOTS
from numpyro_amortized.approximators.joint import JointDensity
from numpyro_amortized.concrete import concrete_values
from numpyro_amortized.simulators.dependence import Varying, varying_sites
from numpyro_amortized.simulators.model import ModelSimulator
from numpyro_amortized.simulators.varying_size import crop_axes

Values = Mapping[str, Array]


class ModelPredictive:
    """Deterministic sites, predictions and densities at values of the inferred latents.

    What depends on latents that are left out of the inference is no function of the inferred
    ones; it is not offered.

    :param simulator: the traced model.
    :param inferred: names of the inferred latents.
    """

    def __init__(self, simulator: ModelSimulator, inferred: Sequence[str]) -> None:
        self.simulator = simulator
        self.context = tuple(s.name for s in simulator.sites.values() if s.role == "context")
        self.inferred = tuple(inferred)
        self._of_size: dict[int, ModelPredictive] = {}

    def at_common_size(self, given: Values) -> tuple["ModelPredictive", dict[str, Array]]:
        """The model of the size that all data sets have, and their values without padding.

        :param given: observed sites and context, with a leading axis of data sets.
        :raises ValueError: where the data sets are of several sizes.
        """
        varying = self.simulator.varying_size
        if varying is None:
            return self, dict(given)
        sizes = np.unique(np.asarray(given[varying.name]))
        if len(sizes) > 1:
            raise ValueError(
                f"conditions: expected data sets of one size '{varying.name}', got sizes "
                f"{sizes.tolist()}: convert those of each size by themselves."
            )
        size = int(sizes[0])
        if size not in self._of_size:
            self._of_size[size] = ModelPredictive(self.simulator.at_size(size), self.inferred)
        axes = {name: tuple(axis + 1 for axis in own) for name, own in varying.axes.items()}
        values = {name: value for name, value in given.items() if name != varying.name}
        return self._of_size[size], crop_axes(values, axes, size)

    @cached_property
    def joint(self) -> JointDensity:
        """The model's joint density.

        :raises ValueError: where it is not known, with the site and the reason.
        """
        return JointDensity(self.simulator, self.inferred)

    @cached_property
    def deterministic_sites(self) -> tuple[str, ...]:
        """Deterministic sites that are functions of the inferred latents and the data."""
        varying = self.simulator.varying_size
        sized = {} if varying is None else varying.axes
        names = [
            s.name
            for s in self.simulator.sites.values()
            if s.role == "deterministic" and s.name not in sized
        ]
        return tuple(name for name in names if not self._varying[name].value)

    @cached_property
    def likelihood_sites(self) -> tuple[str, ...]:
        """Observed sites with a density given the inferred latents; all of them or none."""
        observed = [s for s in self.simulator.sites.values() if s.role == "observed"]
        settled = all(s.has_density and not self._varying[s.name].distribution for s in observed)
        return tuple(s.name for s in observed) if settled else ()

    @cached_property
    def prior_sites(self) -> tuple[str, ...]:
        """Inferred latents with a prior density that depends on no other latents; all or none."""
        settled = not any(self._varying[name].distribution for name in self.inferred)
        return self.inferred if settled else ()

    def deterministic(self, latents: Values, observed: Values) -> dict[str, Array]:
        """Values of the deterministic sites."""
        if not self.deterministic_sites:
            return {}
        trace = self.simulator.trace(random.key(0), {**latents, **observed})
        return {name: jnp.asarray(trace[name]["value"]) for name in self.deterministic_sites}

    def observations(self, rng_key: Array, latents: Values, observed: Values) -> dict[str, Array]:
        """New observations, drawn from the model in the context of those given."""
        context = {name: observed[name] for name in self.context}
        trace = self.simulator.trace(rng_key, {**latents, **context})
        return {s.name: trace[s.name]["value"] for s in self._observed}

    def log_likelihood(self, latents: Values, observed: Values) -> dict[str, Array]:
        """Pointwise log densities of the observations, of each site's batch shape."""
        return self._log_densities(self.likelihood_sites, latents, observed)

    def log_prior(self, latents: Values, observed: Values) -> dict[str, Array]:
        """Log prior densities of the inferred latents, of each site's batch shape."""
        return self._log_densities(self.prior_sites, latents, observed)

    @cached_property
    def of_draws(self) -> Callable[[Array, Values, Values], dict[str, dict[str, Array]]]:
        """Predictions and densities of many draws, by group; compiled once.

        For keys ``(num_conditions, num_samples)`` and latents of these leading axes.
        """

        def one(rng_key: Array, latents: Values, given: Values) -> dict[str, dict[str, Array]]:
            return {
                "posterior_predictive": self.observations(rng_key, latents, given),
                "log_likelihood": self.log_likelihood(latents, given),
                "log_prior": self.log_prior(latents, given),
            }

        _ = self._varying  # found before anything is traced, by programs that there are
        return jax.jit(jax.vmap(jax.vmap(one, in_axes=(0, 0, None))))

    @property
    def _observed(self) -> list:
        return [site for site in self.simulator.sites.values() if site.role == "observed"]

    @cached_property
    def _varying(self) -> dict[str, Varying]:
        known = [*self.inferred, *self.context]
        if self.simulator.varying_size is None:  # otherwise observed values may be padding
            known += [site.name for site in self._observed]
        with concrete_values():  # it may be asked for first while tracing
            draws = self.simulator.sample(random.key(21), NUM_PILOTS)  # compiled for the adapter
            values = {name: np.asarray(draws[name])[0] for name in known}
            return varying_sites(self.simulator, values)

    def _log_densities(
        self, names: Sequence[str], latents: Values, observed: Values
    ) -> dict[str, Array]:
        trace = self.simulator.trace(random.key(0), {**latents, **observed})
        return {name: trace[name]["fn"].log_prob(trace[name]["value"]) for name in names}
