# SPDX-License-Identifier: Apache-2.0
"""Models after NumPyro's examples are accepted with model and data as for MCMC."""

from functools import cache

import jax
import numpy as np
import pytest
from jax import random

import numpyro_amortized as npa
from numpyro_amortized.simulators import ModelSimulator
from tests.conftest import others_verified
from tests.zoo import DATA_AS_COVARIATES, ZOO

NUM_DRAWS = 200

# model: site: (role, shape, plates), in trace order
SITES = {
    "eight_schools": {
        "mu": ("latent", (), ()),
        "tau": ("latent", (), ()),
        "theta": ("latent", (8,), ("school",)),
        "y": ("observed", (8,), ("school",)),
    },
    "fully_pooled": {
        "phi": ("latent", (), ()),
        "hits": ("observed", (18,), ("players",)),
    },
    "not_pooled": {
        "phi": ("latent", (18,), ("players",)),
        "hits": ("observed", (18,), ("players",)),
    },
    "partially_pooled": {
        "m": ("latent", (), ()),
        "kappa": ("latent", (), ()),
        "phi": ("latent", (18,), ("players",)),
        "hits": ("observed", (18,), ("players",)),
    },
    "partially_pooled_with_logit": {
        "loc": ("latent", (), ()),
        "scale": ("latent", (), ()),
        "alpha": ("latent", (18,), ("players",)),
        "hits": ("observed", (18,), ("players",)),
    },
    "stochastic_volatility": {
        "step_size": ("latent", (), ()),
        "s": ("latent", (20,), ()),
        "nu": ("latent", (), ()),
        "r": ("observed", (20,), ()),
    },
    "ucbadmit": {
        "mean": ("latent", (2,), ()),
        "sigma": ("latent", (2,), ()),
        "correlation": ("latent", (2, 2), ()),
        "effects": ("latent", (6, 2), ("departments",)),
        "admitted": ("observed", (12,), ("rows",)),
    },
    "lynx_hare": {
        "initial": ("latent", (2,), ()),
        "theta": ("latent", (4,), ()),
        "sigma": ("latent", (2,), ()),
        "pelts": ("observed", (21, 2), ()),
    },
    "gaussian_process": {
        "variance": ("latent", (), ()),
        "noise": ("latent", (), ()),
        "length": ("latent", (), ()),
        "y": ("observed", (12,), ()),
    },
    "hidden_markov": {
        "transition": ("latent", (3, 3), ("states",)),
        "emission": ("latent", (3, 4), ("states",)),
        "words": ("observed", (15,), ()),
    },
    "horseshoe": {
        "local": ("latent", (4,), ()),
        "overall": ("latent", (), ()),
        "unscaled": ("latent", (4,), ()),
        "beta": ("deterministic", (4,), ()),
        "precision": ("latent", (), ()),
        "y": ("observed", (10,), ()),
    },
    "zero_inflated_poisson": {
        "to_gate": ("latent", (1,), ()),
        "to_rate": ("latent", (1,), ()),
        "counts": ("observed", (240,), ("intervals",)),
    },
    "proportion_test": {
        "beta": ("latent", (4,), ()),
        "probabilities": ("deterministic", (10,), ()),
        "chosen": ("observed", (10,), ()),
    },
    "hilbert_space_gp": {
        "alpha": ("latent", (), ()),
        "length": ("latent", (), ()),
        "noise": ("latent", (), ()),
        "beta": ("latent", (5,), ("basis",)),
        "f": ("deterministic", (12,), ()),
        "y": ("observed", (12,), ("points",)),
    },
}

# models whose observations are a set: exchangeable, given the latents
SETS = {"fully_pooled", "zero_inflated_poisson"}
# those that are simulated by `make test` too
FEW = {"eight_schools", "not_pooled", "lynx_hare", "gaussian_process", "horseshoe"}


@cache
def simulator_of(name):
    model, args = ZOO[name]
    return ModelSimulator(model, *args)


@cache
def draws_of(name):
    """By ``jit(vmap(simulate))``."""
    return jax.device_get(simulator_of(name).sample(random.key(0), NUM_DRAWS))


@pytest.mark.parametrize("name", ZOO)
def test_roles_shapes_and_plates(name):
    sites = simulator_of(name).sites
    plates = {n: tuple(plate for plate, _, _ in site.plates) for n, site in sites.items()}
    found = {n: (site.role, site.shape, plates[n]) for n, site in sites.items()}
    assert [*found.items()] == [*SITES[name].items()]


@pytest.mark.parametrize("name", others_verified(ZOO, FEW))
def test_simulations(name):
    draws = draws_of(name)
    for site in simulator_of(name).sites.values():
        values = draws[site.name]
        assert values.shape == (NUM_DRAWS, *site.shape) and values.dtype == site.dtype
        assert np.isfinite(values).all(axis=tuple(range(1, values.ndim))).mean() > 0.95
        assert len(np.unique(values.reshape(NUM_DRAWS, -1), axis=0)) > 1


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.verify
def test_adapters_of_the_posterior(name):
    simulator, draws = simulator_of(name), draws_of(name)
    adapter = npa.Adapter.for_posterior(simulator, pilot=draws)

    @jax.jit
    def there_and_back(latents):
        inputs = adapter.forward(latents)["inference_variables"]
        return inputs, adapter.inverse({"inference_variables": inputs})

    latents = {n: draws[n] for n, site in simulator.sites.items() if site.role == "latent"}
    inputs, back = there_and_back(latents)
    assert inputs.shape == (NUM_DRAWS, inputs.size // NUM_DRAWS)
    assert {*back} == {*latents}
    assert ("summary_variables" in jax.eval_shape(adapter.forward, draws)) == (name in SETS)
    for site, values in latents.items():
        error = np.abs(back[site] - values) / (1e-3 + np.abs(values))
        # Not the largest: in float32 the tails of quantiles lose digits.
        assert np.quantile(error, 0.95) < 1e-3, site


@pytest.mark.parametrize("name", DATA_AS_COVARIATES)
def test_models_that_use_data_as_covariates_are_refused(name):
    model, args = DATA_AS_COVARIATES[name]
    with pytest.raises(ValueError, match=r"data in argument '(y|history)' leak.*observed="):
        ModelSimulator(model, *args)
