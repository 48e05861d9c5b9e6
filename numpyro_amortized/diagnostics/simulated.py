# SPDX-License-Identifier: Apache-2.0
"""Simulations with known latents, and the draws that an approximator makes for them."""

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, random
from jax.typing import ArrayLike

from numpyro_amortized.adapters.adapter import Adapter
from numpyro_amortized.approximators.conditions import (
    check_num_samples,
    check_positive,
    given_names,
)
from numpyro_amortized.approximators.sources import Source
from numpyro_amortized.simulators.base import Simulator, typed_key
from numpyro_amortized.simulators.model import ModelSimulator
from numpyro_amortized.simulators.tracing import Site

__all__ = [
    "DrawsApproximator",
    "LearnedFrom",
    "PosteriorDraws",
    "Simulations",
    "check_draws",
    "posterior_draws",
    "simulations_of",
    "site_dims",
]


class LearnedFrom(Protocol):
    """What simulating needs of an approximator: its source, and what it infers."""

    @property
    def source(self) -> Source:
        """What it learned from."""

    @property
    def adapter(self) -> Adapter:
        """Site values to network inputs."""

    @property
    def sites(self) -> Mapping[str, Site]:
        """The sites of the source."""

    @property
    def inferred_sites(self) -> tuple[str, ...]:
        """Names of the latents whose posterior it draws from."""


class DrawsApproximator(LearnedFrom, Protocol):
    """What most diagnostics need of an approximator: a source to simulate from, and draws."""

    def sample(
        self,
        rng_key: Array,
        num_samples: int,
        conditions: Mapping[str, ArrayLike],
        *,
        batch_size: int | None = None,
    ) -> dict[str, Array]:
        """Draws ``(num_conditions, num_samples, *shape)``."""


class Simulations(NamedTuple):
    """Simulated data sets and the latents that they were simulated at."""

    truth: dict[str, Array]  # of the inferred latents, (num_datasets, *shape)
    observed: dict[str, Array]  # conditions, (num_datasets, *shape)
    skipped: int  # simulations left out since a value was not finite

    @property
    def num_datasets(self) -> int:
        """Length of the leading axis."""
        return len(next(iter(self.truth.values())))


class PosteriorDraws(NamedTuple):
    """Draws for simulated data sets, beside the latents that the data were simulated at.

    :param truth: latents, values ``(num_datasets, *shape)``.
    :param draws: draws from the approximate posteriors, ``(num_datasets, num_samples, *shape)``.
    :param observed: the data sets, ``(num_datasets, *shape)``.
    :param dims: names of each latent's own dimensions, plates by their name.
    """

    truth: dict[str, np.ndarray]
    draws: dict[str, np.ndarray]
    observed: dict[str, np.ndarray]
    dims: dict[str, tuple[str, ...]]


def posterior_draws(
    rng_key: Array,
    approximator: DrawsApproximator,
    *,
    num_datasets: int = 300,
    num_samples: int = 1000,
    simulations: Mapping[str, ArrayLike] | None = None,
    batch_size: int | None = None,
) -> PosteriorDraws:
    """Simulate data sets and draw from the posterior of each: what most diagnostics start from.

    :param rng_key: a key.
    :param approximator: a trained approximator.
    :param num_datasets: number of data sets to simulate.
    :param num_samples: draws for each of them.
    :param simulations: held-out simulations to use instead of new ones, site values with a
        leading axis; needed where the source is no simulator.
    :param batch_size: data sets at a time, which bounds memory on the device; by default all.
    :return: latents, draws and data sets on the host. Simulations that are not finite are left out.
    """
    simulate_key, draw_key = random.split(typed_key(rng_key))
    num_samples = check_num_samples(num_samples)
    held_out = simulations_of(simulate_key, approximator, num_datasets, simulations)
    draws = approximator.sample(draw_key, num_samples, held_out.observed, batch_size=batch_size)
    return PosteriorDraws(
        jax.device_get(held_out.truth),
        {name: np.asarray(draws[name]) for name in held_out.truth},
        jax.device_get(held_out.observed),
        {name: site_dims(approximator.sites[name]) for name in held_out.truth},
    )


def simulations_of(
    rng_key: Array,
    approximator: LearnedFrom,
    num_datasets: int,
    simulations: Mapping[str, ArrayLike] | None = None,
) -> Simulations:
    """
    Finite simulations of the approximator's source, or those given.

    :param rng_key: a key.
    :param approximator: of which the source, the sites and the adapter are used.
    :param num_datasets: number of simulations, where none are given.
    :param simulations: site values with a leading axis.
    :raises ValueError: where the source cannot simulate and none are given, or a site is missing.
    """
    check_positive(num_datasets=num_datasets)
    if simulations is None and not isinstance(approximator.source, Simulator):
        raise ValueError(
            "simulations: expected held-out simulations, since the approximator learned from a "
            f"{type(approximator.source).__name__} and has no simulator. Pass simulations={{...}}, "
            "site values that `fit` has not seen."
        )
    if simulations is None:
        simulations = approximator.source.sample(rng_key, num_datasets)  # type: ignore[union-attr]
    given = given_names(approximator.sites)
    names = [*_checked_sites(approximator), *given]
    if missing := [name for name in names if name not in simulations]:
        raise ValueError(f"simulations: expected values of {names}, missing: {missing}.")
    values = {name: np.asarray(simulations[name]) for name in names}
    finite = _finite(values, approximator.adapter.may_be_missing)
    if not finite.any():
        raise ValueError("simulations: none of them has finite values throughout.")
    kept = {name: jnp.asarray(value[finite]) for name, value in values.items()}
    truth = {name: kept[name] for name in names if name not in given}
    return Simulations(truth, {name: kept[name] for name in given}, int((~finite).sum()))


def check_draws(
    truth: Mapping[str, ArrayLike], draws: Mapping[str, ArrayLike]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Latents and draws that belong together, as arrays on the host.

    :param truth: values ``(num_datasets, *shape)``.
    :param draws: values ``(num_datasets, num_samples, *shape)`` of these sites; of others, which
        are left out.
    :raises ValueError: naming the site whose shapes do not fit, or whose draws are NaN.
    """
    if missing := [name for name in truth if name not in draws]:
        raise ValueError(f"draws: expected the sites {list(truth)}, missing: {missing}.")
    known = {name: np.asarray(value) for name, value in truth.items()}
    drawn = {name: np.asarray(draws[name]) for name in truth}
    for name, value in known.items():
        shape = drawn[name].shape
        if not value.ndim or shape[:1] + shape[2:] != value.shape:
            raise ValueError(
                f"Site '{name}': expected draws of shape (num_datasets, num_samples, *shape) and "
                f"latents of shape (num_datasets, *shape), got {shape} and {value.shape}."
            )
        if count := int(np.isnan(drawn[name]).sum()):
            raise ValueError(f"Site '{name}': {count} of {drawn[name].size} draws are NaN.")
    return known, drawn


def site_dims(site: Site) -> tuple[str, ...]:
    """Names of a site's own dimensions: its plates, and ``<name>_dim_<axis>`` for the others."""
    dims = [f"{site.name}_dim_{axis}" for axis in range(len(site.shape))]
    for plate, dim, _ in site.plates:
        dims[len(site.shape) - site.event_dim + dim] = plate
    return tuple(dims)


def _checked_sites(approximator: LearnedFrom) -> list[str]:
    """Inferred latents without those that are padded where the size of the data varies."""
    source = approximator.source
    varying = source.varying_size if isinstance(source, ModelSimulator) else None
    padded = {} if varying is None else varying.axes
    return [name for name in approximator.inferred_sites if name not in padded]


def _finite(values: Mapping[str, np.ndarray], may_be_missing: object) -> np.ndarray:
    ignored = set(may_be_missing)  # type: ignore[call-overload]
    rows = [
        np.isfinite(value).reshape(len(value), -1).all(1)
        for name, value in values.items()
        if name not in ignored
    ]
    return np.logical_and.reduce(rows)
