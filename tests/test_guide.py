# SPDX-License-Identifier: Apache-2.0
"""The amortized posterior as a guide."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from flax import nnx
from jax import random
from numpyro.handlers import block, seed, substitute
from numpyro.infer import (
    MCMC,
    NUTS,
    SVI,
    Predictive,
    RenyiELBO,
    Trace_ELBO,
    TraceMeanField_ELBO,
    psis_diagnostic,
)
from numpyro.infer.autoguide import AutoGuide, AutoGuideList, AutoNormal
from numpyro.infer.reparam import NeuTraReparam
from numpyro.infer.util import log_density, potential_energy
from scipy import stats

import numpyro_amortized as npa
from numpyro_amortized.networks import CouplingFlow, DeepSet, Spline
from tests import models

Y = np.linspace(-1, 2, 6).astype(np.float32)
ARGS = (models.DESIGN, Y)
BRIEF = {"epochs": 1, "num_batches": 2, "batch_size": 8, "validation": 0, "progress_bar": False}
TINY = partial(CouplingFlow, depth=1, widths=(8,), transform=Spline(bins=4))


@pytest.fixture
def guide(regression):
    return npa.AmortizedGuide(models.regression, regression)


@pytest.fixture
def bound(regression):
    return npa.AmortizedGuide(models.regression, regression, observed={"y": Y})


def log_evidence():
    X = np.column_stack([np.ones(6), models.DESIGN])
    covariance = X @ np.diag([4.0, 1, 1]) @ X.T + models.NOISE**2 * np.eye(6)
    return stats.multivariate_normal(X[:, 0], covariance).logpdf(Y)


@pytest.mark.verify
@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO, RenyiELBO])
def test_elbos_are_just_below_the_evidence(guide, elbo):
    assert isinstance(guide, AutoGuide)
    loss = elbo(num_particles=500)
    gap = loss.loss(random.key(1), {}, models.regression, guide, *ARGS) + log_evidence()
    # KL of a trained network; the Monte Carlo error of 500 particles is about 0.3 / sqrt(500)
    assert -0.07 < gap < 0.2


@pytest.mark.verify
def test_tuning_by_svi(guide, regression):
    before = nnx.to_pure_dict(nnx.split(regression.networks, nnx.Param, ...)[1])
    copies = jax.tree.map(np.array, before)
    svi = SVI(models.regression, guide, optax.adam(1e-3), Trace_ELBO(num_particles=8))
    result = svi.run(random.key(0), 20, *ARGS, progress_bar=False)
    assert set(result.params) == {"auto$params"}
    changes = jax.tree.map(lambda x, y: np.abs(x - y).max(), result.params["auto$params"], copies)
    assert max(jax.tree.leaves(changes)) > 1e-3
    jax.tree.map(np.testing.assert_array_equal, before, copies)  # the approximator stays


@pytest.mark.verify
def test_part_of_the_networks_or_none(regression):
    frozen = npa.AmortizedGuide(models.regression, regression, trainable=False)
    svi = SVI(models.regression, frozen, optax.adam(1e-3), Trace_ELBO())
    assert svi.get_params(svi.init(random.key(0), *ARGS)) == {}
    biases = nnx.All(nnx.Param, nnx.PathContains("bias"))
    guide = npa.AmortizedGuide(models.regression, regression, trainable=biases)
    svi = SVI(models.regression, guide, optax.adam(1e-3), Trace_ELBO())
    state = svi.init(random.key(0), *ARGS)
    before = svi.get_params(state)["auto$params"]
    after = svi.get_params(jax.jit(svi.update)(state, *ARGS)[0])["auto$params"]
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(after)]
    assert all(path[-1].key == "bias" for path in paths)
    assert all((x != y).any() for x, y in zip(*map(jax.tree.leaves, (before, after)), strict=True))


def test_draws_of_a_bound_guide(bound):
    exact = models.regression_posterior(Y)
    draws = bound.sample_posterior(random.key(0), {}, sample_shape=(4000,))
    latents = np.column_stack([draws["intercept"], draws["slope"]])
    sd = np.sqrt(np.diag(exact.covariance))
    # a tenth of a standard deviation for training, four standard errors of 4,000 draws
    assert (np.abs(latents.mean(0) - exact.mean) / sd < 0.1 + 4 * 4000**-0.5).all()
    median = bound.median({})
    medians = np.append(median["intercept"], median["slope"])
    assert (np.abs(medians - exact.mean) / sd < 0.2).all()
    quantiles = bound.quantiles({}, [0.1, 0.9])
    assert quantiles["slope"].shape == (2, 2)


def test_predictive_without_data(bound):
    predictive = Predictive(models.regression, guide=bound, params={}, num_samples=2000)
    draws = predictive(random.key(0), models.DESIGN, None)
    exact = models.regression_posterior(Y)
    X = np.column_stack([np.ones(6), models.DESIGN])
    # sds of predictions are below 0.8: four standard errors, and as much again for training
    assert np.abs(draws["y"].mean(0) - X @ exact.mean).max() < 8 * 0.8 * 2000**-0.5


@pytest.mark.verify
def test_psis_diagnostic_trusts_it(guide):
    k = psis_diagnostic(random.key(0), {}, models.regression, guide, *ARGS, num_particles=1000)
    assert k < 0.7


@pytest.mark.verify
def test_starts_of_every_chain(bound):
    starts = bound.init_params(random.key(0), 3, *ARGS)
    assert starts["slope"].shape == (3, 2) and len(np.unique(starts["intercept"])) == 3
    mcmc = MCMC(
        NUTS(models.regression),
        num_warmup=5,
        num_samples=5,
        num_chains=3,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(random.key(1), *ARGS, init_params=starts)
    assert np.isfinite(mcmc.get_samples()["slope"]).all()


def two_terms(y):
    a = numpyro.sample("a", dist.Normal(0, 1))
    b = numpyro.sample("b", dist.HalfNormal(1))
    numpyro.deterministic("total", a + b)
    numpyro.sample("y", dist.Normal(a + b, 1), obs=y)


@pytest.fixture(scope="module")
def first_term(approximate):
    """One of two latents, hardly trained."""
    approximator = approximate(two_terms, 0.0, sites=("a",), network=TINY)
    approximator.fit(random.key(0), **BRIEF)
    return approximator


@pytest.mark.verify
def test_beside_a_guide_of_the_other_sites(first_term):
    guide = AutoGuideList(two_terms)
    guide.append(npa.AmortizedGuide(block(two_terms, expose=["a"]), first_term))
    guide.append(AutoNormal(block(two_terms, expose=["b"])))
    svi = SVI(two_terms, guide, optax.adam(1e-2), Trace_ELBO())
    params = svi.run(random.key(0), 3, 1.5, progress_bar=False).params
    assert set(params) == {"auto$params", "b_auto_loc", "b_auto_scale"}
    log_q, trace = log_density(seed(guide, random.key(1)), (1.5,), {}, params)
    networks = params["auto$params"]
    state = nnx.state(first_term.networks, nnx.Param)
    before = nnx.to_pure_dict(jax.tree.map(jnp.copy, state))
    nnx.replace_by_pure_dict(state, networks)
    nnx.update(first_term.networks, state)
    expected = first_term.log_prob({"a": trace["a"]["value"], "y": 1.5})
    nnx.replace_by_pure_dict(state, before)
    nnx.update(first_term.networks, state)
    of_b = dist.LogNormal(params["b_auto_loc"], params["b_auto_scale"])
    expected += of_b.log_prob(trace["b"]["value"])
    np.testing.assert_allclose(log_q, expected, rtol=1e-4, atol=1e-4)
    draws = guide.sample_posterior(random.key(2), params, 1.5, sample_shape=(5,))
    assert draws["a"].shape == draws["b"].shape == (5,)


@pytest.mark.verify
def test_starts_of_latents_that_are_not_inferred(first_term):
    guide = npa.AmortizedGuide(two_terms, first_term)
    starts = guide.init_params(random.key(0), 4, 1.5)
    assert starts["a"].shape == starts["b"].shape == (4,)
    assert len(np.unique(starts["b"])) == 4
    assert guide.init_params(random.key(0), 1, 1.5)["b"].shape == ()


GROUPS = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def groups():
    """Four groups, hardly trained."""
    source = npa.ModelSimulator(models.group_means, GROUPS)
    sets = partial(DeepSet, summary_size=4, widths=(8,), embedding_size=8)
    approximator = npa.ContinuousApproximator(
        source,
        adapter=npa.Adapter.for_posterior(source, hierarchical=True),
        inference_network=TINY,
        summary_network=sets,
    )
    approximator.fit(random.key(0), **BRIEF)
    return approximator


@pytest.mark.verify
def test_a_subsampled_plate_stands_for_all_groups(groups):
    """The mean of the scaled log densities over all choices of a group is that of all groups."""
    guide = npa.AmortizedGuide(models.group_means, groups, observed={"y": GROUPS})
    posterior = groups.posterior({"y": GROUPS})
    vector = posterior.sample(random.key(1))
    own, rows = vector[:2], vector[2:].reshape(4, 1, 1)

    @jax.jit
    def log_q(index):
        values = {"_auto_latent": own, "_auto_group_latent": rows[index], "group": index}
        fixed = substitute(seed(guide, random.key(0)), data=values)
        log_q, trace = log_density(fixed, (GROUPS, 1), {}, {})
        return log_q, {name: trace[name]["value"] for name in ("mu", "tau", "theta")}

    each = [log_q(jnp.array([i])) for i in range(4)]
    latents = posterior.constrain(vector)
    for i, (_, values) in enumerate(each):
        np.testing.assert_allclose(values["tau"], latents["tau"], rtol=1e-5)
        np.testing.assert_allclose(
            values["theta"], latents["theta"][i : i + 1], rtol=1e-4, atol=1e-5
        )
    sites = {name: latents[name] for name in ("mu", "tau", "theta")}
    expected = groups.log_prob(sites | {"y": GROUPS})
    np.testing.assert_allclose(np.mean([x for x, _ in each]), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.verify
def test_tuning_by_minibatches(groups):
    guide = npa.AmortizedGuide(models.group_means, groups, observed={"y": GROUPS})
    svi = SVI(models.group_means, guide, optax.adam(1e-3), Trace_ELBO())
    result = svi.run(random.key(0), 3, GROUPS, 2, progress_bar=False)
    assert np.isfinite(result.losses).all()
    draws = guide.sample_posterior(random.key(1), result.params, sample_shape=(7,))
    assert draws["theta"].shape == (7, 4, 1)


def halved(x, y):
    intercept = numpyro.sample("intercept", dist.Normal(1, 2))
    with numpyro.plate("feature", 2, 1) as index:
        slope = numpyro.sample("slope", dist.Normal(0, 1))
    numpyro.sample("y", dist.Normal(intercept + x[:, index] @ slope, 0.5).to_event(1), obs=y)


@pytest.mark.verify
def test_what_subsampling_needs(groups, regression):
    guide = npa.AmortizedGuide(models.group_means, groups)
    with pytest.raises(ValueError, match=r"sees 2 of 4 members of plate 'group'.*the full data"):
        guide.sample_posterior(random.key(0), {}, GROUPS, 2)
    bound = npa.AmortizedGuide(models.group_means, groups, observed={"y": GROUPS})
    with pytest.raises(ValueError, match=r"other values of 'y' than those that are bound"):
        seed(bound, random.key(0))(GROUPS + 1, 2)
    bound = npa.AmortizedGuide(halved, regression, observed={"y": Y})
    with pytest.raises(ValueError, match=r"subsamples the plates \['feature'\].*hierarchical=True"):
        seed(bound, random.key(0))(*ARGS)


def parts_of_width(y):
    scale = numpyro.sample("scale", dist.HalfNormal(2))
    width = numpyro.sample("width", dist.Uniform(0, scale))
    share = numpyro.sample("share", dist.Dirichlet(np.array([1.0, 2.0, 3.0])))
    numpyro.sample("y", dist.Normal(width * share[0], 1), obs=y)


@pytest.mark.verify
def test_the_flow_of_a_bound_guide(approximate):
    """Its log-determinant is that of the Jacobian; densities are those of the model and of q."""
    y, model = 0.5, parts_of_width
    approximator = approximate(model, y, network=TINY)
    approximator.fit(random.key(0), **BRIEF)
    guide = npa.AmortizedGuide(model, approximator, observed={"y": y})
    neutra = NeuTraReparam(guide, {})
    flow, base = neutra.transform, guide.get_base_dist()
    z = base.sample(random.key(0))

    @jax.jit
    def evaluate(z):
        vector = flow(z)
        log_det = flow.log_abs_det_jacobian(z, vector)
        unconstrained = guide._unpack_latent(vector)
        energy = potential_energy(model, (y,), {}, unconstrained)
        carried = log_density(neutra.reparam(model), (y,), {}, {"auto_shared_latent": z})[0]
        latents = neutra.transform_sample(jnp.stack([z, -z]))
        log_p = log_density(model, (y,), {}, jax.tree.map(lambda x: x[0], latents))[0]
        return log_det, jax.jacobian(flow)(z), energy, carried, latents, log_p

    log_det, jacobian, energy, carried, latents, log_p = evaluate(z)
    np.testing.assert_allclose(log_det, np.linalg.slogdet(jacobian)[1], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(carried, log_det - energy, rtol=1e-4)
    log_q = approximator.log_prob({n: x[:1] for n, x in latents.items()} | {"y": y})[0]
    # the model's density in both spaces tells the change of volume between them
    np.testing.assert_allclose(log_q, base.log_prob(z) - log_det + log_p + energy, rtol=1e-3)


def test_errors(guide, regression):
    with pytest.raises(ValueError, match=r"observes no \['y'\].*bind"):
        guide.sample_posterior(random.key(0), {}, models.DESIGN, None)
    for method in (guide.median, guide.get_transform):
        with pytest.raises(ValueError, match="Bind it"):
            method({})
    with pytest.raises(ValueError, match="one data set, got a batch of 2"):
        npa.AmortizedGuide(models.regression, regression, observed={"y": np.stack([Y, Y])})
