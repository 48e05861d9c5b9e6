# SPDX-License-Identifier: Apache-2.0
"""Composed posteriors beside analytic ones, and beside NUTS where the prior is not normal."""

from functools import partial

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from flax import nnx
from jax import random

import numpyro_amortized as npa
from numpyro_amortized.networks import DiffusionModel, FlowMatching
from tests import observations

pytestmark = pytest.mark.verify
COVARIANCE = np.array([[1.0, 0.5], [0.5, 1.0]])
WIDTHS = (64,) * 3
# number of groups: greatest error of a mean in posterior sds, and of an sd relatively
BOUNDS = {2: (0.1, 0.1), 10: (0.1, 0.1), 100: (0.1, 0.1), 1000: (0.3, 0.25), 10_000: (1.0, np.inf)}


def gaussian(y):
    mu = numpyro.sample("mu", dist.Normal(0, 1).expand([2]).to_event(1))
    numpyro.sample("y", dist.MultivariateNormal(mu, COVARIANCE), obs=y)


@pytest.fixture(scope="module", params=[DiffusionModel, FlowMatching])
def approximator(request):
    found = npa.CompositionalApproximator(
        npa.ModelSimulator(gaussian, np.zeros(2)),
        inference_network=partial(request.param, widths=WIDTHS),
    )
    found.fit(random.key(0), epochs=200, num_batches=100, progress_bar=False)
    return found


@pytest.mark.parametrize("num_groups", BOUNDS)
def test_gaussian(approximator, num_groups):
    rng = np.random.default_rng(num_groups)
    num_datasets = {2: 4, 10: 4, 100: 2}.get(num_groups, 1)
    mu = rng.normal(size=(num_datasets, 1, 2))
    noise = rng.normal(size=(num_datasets, num_groups, 2)) @ np.linalg.cholesky(COVARIANCE).T
    y = (mu + noise).astype(np.float32)
    num_samples = {2: 4000, 10: 4000, 100: 4000, 1000: 300, 10_000: 50}[num_groups]
    draws = approximator.compositional_sample(random.key(1), num_samples, {"y": y})["mu"]
    precision = np.linalg.inv(COVARIANCE)
    covariance = np.linalg.inv(np.eye(2) + num_groups * precision)
    means = y.sum(1) @ precision @ covariance
    sds = np.sqrt(np.diag(covariance))
    error = np.abs(np.asarray(draws).mean(1) - means) / sds
    spread = np.abs(np.asarray(draws).std(1) / sds - 1)
    print(num_groups, "mean", error.max(), "sd", spread.max())
    assert np.isfinite(draws).all()
    # the Monte Carlo errors of 4,000 draws are .016 sd and 1.1 %, of 300 .06 sd and 4 %
    assert error.max() < BOUNDS[num_groups][0]
    assert spread.max() < BOUNDS[num_groups][1]


def heteroscedastic(y, prior):
    """Observations of one group or of many; the prior of the scale is Gamma or Exponential."""
    mu = numpyro.sample("mu", dist.Laplace(0, 1))
    scale = numpyro.sample("scale", prior)
    numpyro.sample("y", dist.Normal(mu, scale).expand(y.shape).to_event(y.ndim), obs=y)


@pytest.mark.parametrize(
    "prior, score", [(dist.Exponential(1), "exact"), (dist.Gamma(3, 3), "learned")]
)
def test_other_priors_beside_nuts(prior, score):
    approximator = npa.CompositionalApproximator(
        npa.ModelSimulator(heteroscedastic, np.zeros(2), prior),
        inference_network=partial(DiffusionModel, widths=WIDTHS),
    )
    assert f"score of the prior: {score}" in str(approximator)
    approximator.fit(random.key(0), epochs=200, num_batches=100, progress_bar=False)
    for seed, (mu, scale) in enumerate([(0.5, 0.7), (-1.0, 1.3)]):
        y = np.random.default_rng(seed).normal(mu, scale, (50, 2)).astype(np.float32)
        draw = partial(approximator.compositional_sample, random.key(1), 4000, {"y": y})
        draws = {"composed": draw(), "moved": draw(num_moves=30)}
        exact = observations.nuts(heteroscedastic, y, prior)
        for name in ("mu", "scale"):
            mean, sd = exact[name].mean(), exact[name].std()
            errors = {k: float(abs(v[name].mean() - mean) / sd) for k, v in draws.items()}
            ratios = {k: float(abs(v[name].std() / sd - 1)) for k, v in draws.items()}
            print(score, name, "mean", errors, "sd", ratios)
            # means have Monte Carlo errors near .02 sd, sds of 1 to 2 %. Composed draws are off by
            # the networks' errors, which differ from training to training: see docs/composition.md
            assert errors["moved"] < 0.1 and ratios["moved"] < 0.1, (name, errors, ratios)


def test_memory_does_not_grow_with_the_groups():
    approximator = npa.CompositionalApproximator(npa.ModelSimulator(gaussian, np.zeros(2)))
    approximator.fit(random.key(0), epochs=1, num_batches=1, progress_bar=False)
    graphdef, state = nnx.split(approximator.inference_network)

    def temporary(num_groups, mini_batch_size):
        def compose(state, contexts):
            options = {"mini_batch_size": mini_batch_size, "num_levels": 5, "last": 0.1}
            merged = nnx.merge(graphdef, state)
            return merged.compose(random.key(0), contexts, 1000, **options)

        contexts = np.zeros((num_groups, 2), np.float32)
        compiled = jax.jit(compose).lower(state, contexts).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    sizes = {n: temporary(n, 20) for n in (20, 1000, 100_000)}
    print("temporary memory, bytes", sizes)
    # what grows are the groups' own contexts, places and weights, at most eight numbers each
    for n, size in sizes.items():
        assert size < sizes[20] + 1e5 + 4 * 8 * n
    assert temporary(1000, 500) > 10 * sizes[1000]
