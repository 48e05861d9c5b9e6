# SPDX-License-Identifier: Apache-2.0
"""Simulation-based calibration."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax import Array, random
from jax.typing import ArrayLike

from numpyro_amortized.approximators.conditions import (
    check_num_samples,
    check_positive,
    in_batches,
)
from numpyro_amortized.approximators.predictive import ModelPredictive
from numpyro_amortized.diagnostics.labelled import labelled
from numpyro_amortized.diagnostics.simulated import (
    DrawsApproximator,
    simulations_of,
    site_dims,
)
from numpyro_amortized.diagnostics.uniformity import uniformity_test
from numpyro_amortized.simulators.base import typed_key
from numpyro_amortized.simulators.model import ModelSimulator

if TYPE_CHECKING:
    import xarray

__all__ = ["Quantity", "pit_values", "simulation_based_calibration"]

Values = Mapping[str, Array]
Quantity = Callable[[Values, Values], ArrayLike]
_NUM_DRAWS = 2**17  # held on the device at a time


def simulation_based_calibration(
    rng_key: Array,
    approximator: DrawsApproximator,
    *,
    num_datasets: int = 500,
    num_samples: int = 200,
    quantities: Mapping[str, Quantity] | None = None,
    simulations: Mapping[str, ArrayLike] | None = None,
    batch_size: int | None = None,
) -> "xarray.DataTree":
    """Whether latents are distributed as the draws say, averaged over data sets [1, 2].

    The rank of each latent among posterior draws, for data sets simulated at it, is uniform if the
    posterior is right. Ranks of latents alone do not see a posterior that ignores the data, so that
    those of functions of latents and data belong to the check [3]: the log likelihood, wherever
    the model has one, and your own.

    All data sets are simulated, drawn for and ranked by compiled programs, vectorized over data
    sets; nothing is trained again.

    :param rng_key: a key.
    :param approximator: a trained approximator.
    :param num_datasets: number of data sets to simulate.
    :param num_samples: posterior draws for each of them.
    :param quantities: name to a function of the latents and the observed values of one draw, both
        mappings of site names to values of the site's own shape, that JAX can trace.
    :param simulations: held-out simulations to use instead of new ones, site values with a
        leading axis; needed where the source is no simulator.
    :param batch_size: data sets at a time, which bounds memory.
    :return: two groups. ``prior_sbc``, in the layout of :func:`arviz.plot_ecdf_pit`: the
        probability integral transform of each latent and quantity, its rank divided by the number
        of draws and one, spread uniformly over the ranks that are equally right, in [0, 1].
        ``uniformity``: the p-values of :func:`uniformity_test`.
    :raises ValueError: where a quantity has the name of a site, or draws are NaN.

    1. Cook, Gelman & Rubin (2006), *Validation of software for Bayesian models using posterior
       quantiles*, Journal of Computational and Graphical Statistics 15.
    2. Talts, Betancourt, Simpson, Vehtari & Gelman (2018), *Validating Bayesian inference
       algorithms with simulation-based calibration*, arXiv:1804.06788.
    3. Modrák, Moon, Kim, Bürkner, Huurre, Faltejsková, Gelman & Vehtari (2023), *Simulation-based
       calibration checking for Bayesian computation*, Bayesian Analysis.
    """
    simulate_key, draw_key = random.split(typed_key(rng_key))
    num_samples = check_num_samples(num_samples)
    batch_size = max(1, _NUM_DRAWS // num_samples) if batch_size is None else batch_size
    check_positive(batch_size=batch_size)
    functions = _log_likelihood(approximator) | _checked(quantities or {}, approximator)
    held_out = simulations_of(simulate_key, approximator, num_datasets, simulations)
    names = list(held_out.truth)

    @jax.jit
    def ranked(rng_key: Array, truth: Values, draws: Values, observed: Values) -> dict[str, Array]:
        at_draws = jax.vmap(jax.vmap(_evaluate(functions, names), in_axes=(0, None)))
        at_truth = jax.vmap(_evaluate(functions, names))
        return pit_values(rng_key, at_truth(truth, observed), at_draws(draws, observed))

    def chunk(keys: Array, truth: Values, observed: Values) -> dict[str, Array]:
        draw_key, tie_key = random.split(keys[0])
        drawn = approximator.sample(draw_key, num_samples, observed)
        return ranked(tie_key, truth, {name: drawn[name] for name in names}, observed)

    keys = random.split(draw_key, held_out.num_datasets)
    pit = in_batches(chunk, (keys, held_out.truth, held_out.observed), batch_size)
    dims = {name: site_dims(approximator.sites[name]) for name in names}
    return _tree(pit, dims, num_samples=num_samples, skipped_simulations=held_out.skipped)


def pit_values(
    rng_key: Array, truth: Mapping[str, ArrayLike], draws: Mapping[str, ArrayLike]
) -> dict[str, Array]:
    """Probability integral transforms of known values by draws; pure and traceable.

    Uniform on [0, 1] for any number of draws where truth and draws have the same distribution:
    ties, as between discrete values, are broken at random. NaN where a draw is.

    :param rng_key: a key, for the ties.
    :param truth: values ``(num_datasets, *shape)``.
    :param draws: values ``(num_datasets, num_samples, *shape)``.
    :return: values ``(num_datasets, *shape)``.
    """
    keys = random.split(rng_key, len(truth))

    def one(rng_key: Array, truth: Array, draws: Array) -> Array:
        below = jnp.sum(draws < truth[:, None], axis=1)
        equal = jnp.sum(draws == truth[:, None], axis=1)
        share = random.uniform(rng_key, truth.shape, jnp.result_type(float))
        pit = (below + share * (equal + 1)) / (draws.shape[1] + 1)
        return jnp.where(jnp.isnan(draws).any(1), jnp.nan, pit)

    arrays = [(jnp.asarray(truth[name]), jnp.asarray(draws[name])) for name in truth]
    return {name: one(key, *pair) for name, key, pair in zip(truth, keys, arrays, strict=True)}


def _evaluate(
    functions: Mapping[str, Quantity], names: list[str]
) -> Callable[[Values, Values], dict[str, ArrayLike]]:
    def evaluate(latents: Values, observed: Values) -> dict[str, ArrayLike]:
        values: dict[str, ArrayLike] = {name: latents[name] for name in names}
        return values | {name: function(latents, observed) for name, function in functions.items()}

    return evaluate


def _log_likelihood(approximator: DrawsApproximator) -> dict[str, Quantity]:
    """That of all observations, where the model has one."""
    source = approximator.source
    if not isinstance(source, ModelSimulator) or source.varying_size is not None:
        return {}
    predictive = ModelPredictive(source, approximator.inferred_sites)
    if not predictive.likelihood_sites:
        return {}

    def log_likelihood(latents: Values, observed: Values) -> Array:
        pointwise = predictive.log_likelihood(latents, observed)
        return jnp.sum(jnp.stack([jnp.sum(value) for value in pointwise.values()]))

    return {"log_likelihood": log_likelihood}


def _checked(
    quantities: Mapping[str, Quantity], approximator: DrawsApproximator
) -> dict[str, Quantity]:
    if taken := [name for name in quantities if name in {*approximator.sites, "log_likelihood"}]:
        raise ValueError(f"quantities: {taken} are names of sites or built in; choose others.")
    return dict(quantities)


def _tree(pit: Values, dims: Mapping[str, tuple[str, ...]], **attrs: float) -> "xarray.DataTree":
    import xarray

    values = {name: jnp.asarray(value)[None] for name, value in pit.items()}
    if bad := {name: int(jnp.isnan(x).sum()) for name, x in pit.items() if jnp.isnan(x).any()}:
        raise ValueError(f"Draws are NaN; number of data sets and elements for each name: {bad}.")
    group = labelled(values, ("chain", "draw"), dims, attrs=attrs)
    return xarray.DataTree.from_dict({"prior_sbc": group, "uniformity": uniformity_test(group)})
