# SPDX-License-Identifier: Apache-2.0
"""Models that cannot be simulated are refused, with the site and the fix; doubtful ones warn."""

import warnings

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.contrib.control_flow import scan

from numpyro_amortized.simulators import ModelSimulator

Y = np.array([3.0, 1, 4, 1, 5])
COUNTS = np.array([3, 1, 4, 1, 5])


def started_by_data(y):
    level = y[0]
    for t in range(1, 5):
        noise = numpyro.sample(f"e{t}", dist.Normal(0, 1))
        level = numpyro.sample(f"y{t}", dist.Normal(level + noise, 1), obs=y[t])


def centered_at_data(y):
    mu = numpyro.sample("mu", dist.Normal(y.mean(), 10))
    numpyro.sample("y", dist.Normal(mu, 1), obs=y)


def recursion_started_by_data(y):
    def step(previous, _):
        value = numpyro.sample("y", dist.Normal(slope * previous, 1))
        return value, None

    slope = numpyro.sample("slope", dist.Normal(0, 1))
    with handlers.condition(data={"y": y[1:]}):
        scan(step, y[0], jnp.arange(1, len(y)))


def counts_as_covariate(y):
    rate = numpyro.sample("rate", dist.Exponential(1.0 / (1 + y[-1])))
    numpyro.sample("y", dist.Poisson(rate), obs=y)


def bounded_by_data(y):
    n = numpyro.sample("n", dist.Uniform(y.max(), 100.0))
    numpyro.sample("y", dist.Uniform(0, n), obs=y)


def concrete_only(y):
    mu = numpyro.sample("mu", dist.Normal(float(np.asarray(y).mean()), 10))
    numpyro.sample("y", dist.Normal(mu, 1), obs=y)


def scalar(k):
    mu = numpyro.sample("mu", dist.Gamma(k + 1.0))
    numpyro.sample("k", dist.Poisson(mu), obs=k)


@pytest.mark.parametrize(
    "model, data, site",
    [
        (started_by_data, Y, "y1"),
        (recursion_started_by_data, jnp.asarray(Y), "y"),
        (centered_at_data, Y, "mu"),
        (centered_at_data, jnp.asarray(Y), "mu"),
        (counts_as_covariate, COUNTS, "rate"),
        (bounded_by_data, Y, "n"),
        (concrete_only, Y, "mu"),
        (scalar, 3, "mu"),
        (scalar, 2.0, "mu"),
    ],
)
def test_leaks_are_refused(model, data, site):
    argument = "k" if model is scalar else "y"
    with pytest.raises(ValueError, match=f"argument '{argument}' leak.*'{site}'.*observed="):
        ModelSimulator(model, data)


def test_leaks_are_found_in_nested_arguments():
    def model(data, *, scale):
        centered_at_data(data["y"])

    with pytest.raises(ValueError, match=r"argument 'data'\['y'\] leak"):
        ModelSimulator(model, {"y": Y}, scale=2.0)
    with pytest.raises(ValueError, match=r"argument 'data'\['y'\] leak"):
        ModelSimulator(model, data={"y": Y}, scale=2.0)


def sized_by_data(y):
    mu = numpyro.sample("mu", dist.Normal(jnp.zeros_like(y), len(y)))
    numpyro.sample("y", dist.Normal(mu, 1), obs=y)


def standardized(y):
    mu = numpyro.sample("mu", dist.Normal(0, 1))
    numpyro.sample("y", dist.Normal(mu, 1), obs=(y - y.mean()) / y.std())


def as_many_rates_as_the_largest_count(y):
    p = numpyro.sample("p", dist.Dirichlet(jnp.ones(int(y.max()) + 1)))
    numpyro.sample("y", dist.Categorical(p), obs=y.astype(int))


@pytest.mark.parametrize("y", [Y, COUNTS])
@pytest.mark.parametrize("model", [sized_by_data, standardized, as_many_rates_as_the_largest_count])
def test_what_is_no_leak(model, y):
    assert ModelSimulator(model, y).sites["y"].shape == (5,)


def test_covariates_are_no_data():
    def model(x, group, y):
        a = numpyro.sample("a", dist.Normal(x.mean(), 1).expand([2]))
        numpyro.sample("y", dist.Normal(a[group] + x, 1), obs=y)

    group = np.array([0, 1, 0, 1, 0])
    assert [*ModelSimulator(model, Y, group, Y + 1).sites] == ["a", "y"]


def test_deterministic_sites_computed_from_data_are_left_out():
    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0, 1))
        numpyro.deterministic("residuals", y - mu)
        numpyro.sample("y", dist.Normal(mu, 1), obs=y)

    with pytest.warns(UserWarning, match="residuals"):
        assert [*ModelSimulator(model, Y).sites] == ["mu", "y"]


def observed(mu, **kwargs):
    numpyro.sample("y", dist.Normal(mu, 1), obs=1.0, **kwargs)


def with_factor():
    mu = numpyro.sample("mu", dist.Normal(0, 1))
    numpyro.factor("f", -(mu**2))
    observed(mu)


def with_delta_density():
    mu = numpyro.sample("mu", dist.Normal(0, 1))
    numpyro.sample("f", dist.Delta(mu, log_density=-(mu**2)), obs=mu)
    observed(mu)


def with_computed_observation():
    mu = numpyro.sample("mu", dist.Normal(0, 1))
    numpyro.sample("f", dist.Normal(0, 1), obs=mu**2)
    observed(mu)


def with_improper():
    prior = dist.ImproperUniform(dist.constraints.positive, (), event_shape=(2,))
    observed(numpyro.sample("f", prior).sum())


def with_masked_improper():
    prior = dist.ImproperUniform(dist.constraints.real, (3,), event_shape=())
    with numpyro.plate("n", 3):
        observed(numpyro.sample("f", prior.mask(True)))


def with_transformed_improper():
    prior = dist.ImproperUniform(dist.constraints.real, (), event_shape=())
    shifted = dist.TransformedDistribution(prior, dist.transforms.AffineTransform(0.0, 2.0))
    observed(numpyro.sample("f", shifted))


def with_sampled_shape():
    f = numpyro.sample("f", dist.Poisson(3.0))
    observed(jnp.zeros(f).sum())


def with_sampled_plate():
    f = numpyro.sample("f", dist.Poisson(3.0))
    with numpyro.plate("n", f):
        observed(0.0)


def with_sampled_branch():
    f = numpyro.sample("f", dist.Normal(0, 1))
    observed(1.0 if f > 0 else 0.0)


def with_sampled_loop():
    f = numpyro.sample("f", dist.Poisson(3.0))
    observed(sum(range(int(f))))


def with_sampled_mask():
    f = numpyro.sample("f", dist.Normal(jnp.zeros(3), 1))
    observed(f[f > 0].sum())


def with_numpy():
    f = numpyro.sample("f", dist.Normal(jnp.zeros(3), 1))
    observed(np.sort(f)[0])


def with_random_likelihood_mask():
    f = numpyro.sample("mu", dist.Normal(0, 1))
    with handlers.mask(mask=f > 0):
        numpyro.sample("f", dist.Normal(f, 1), obs=1.0)


def with_wrong_shape():
    mu = numpyro.sample("mu", dist.Normal(0, 1).expand([3]))
    numpyro.sample("f", dist.Normal(mu, 1), obs=np.ones((3, 1)))


@pytest.mark.parametrize(
    "model, error",
    [
        (with_factor, NotImplementedError),
        (with_delta_density, NotImplementedError),
        (with_computed_observation, NotImplementedError),
        (with_improper, ValueError),
        (with_masked_improper, ValueError),
        (with_transformed_improper, ValueError),
        (with_sampled_shape, TypeError),
        (with_sampled_plate, TypeError),
        (with_sampled_branch, TypeError),
        (with_sampled_loop, TypeError),
        (with_sampled_mask, TypeError),
        (with_numpy, TypeError),
        (with_random_likelihood_mask, ValueError),
        (with_wrong_shape, ValueError),
    ],
)
def test_refused_naming_the_site(model, error):
    with pytest.raises(error, match=r"[Ss]ite 'f'"):
        ModelSimulator(model)


def test_improper_prior_may_be_fixed():
    assert ModelSimulator(handlers.condition(scaled_normal, {"s": 1.0})).fixed == ("s",)


def scaled_normal():
    s = numpyro.sample("s", dist.ImproperUniform(dist.constraints.positive, (), event_shape=()))
    observed(numpyro.sample("mu", dist.Normal(0, s)))


def test_nothing_observed():
    with pytest.raises(ValueError, match=r"no observed site among \['mu'\].*observed="):
        ModelSimulator(lambda: numpyro.sample("mu", dist.Normal(0, 1)))


def test_nothing_latent():
    with pytest.raises(ValueError, match="no latent site"):
        ModelSimulator(lambda: observed(0.0))


@pytest.mark.parametrize("names", ["z", ["y", "z"]])
def test_unknown_observed_names(names):
    with pytest.raises(ValueError, match=r"'z'.*\['mu', 'y'\]"):
        ModelSimulator(sized_by_data, Y, observed=names)


def test_duplicate_names_are_numpyros_error():
    def model():
        observed(0.0)
        observed(0.0)

    with pytest.raises(AssertionError, match="unique names"):
        ModelSimulator(model)


def test_other_errors_of_the_model_are_its_own():
    def model():
        observed(len(1.0))

    with pytest.raises(TypeError, match="has no len"):
        ModelSimulator(model)


def test_scale_warns_and_points_at_the_caller():
    model = handlers.scale(sized_by_data, scale=0.5)
    with pytest.warns(UserWarning, match=r"scale on sites \['mu', 'y'\]") as record:
        ModelSimulator(model, Y)
    assert record[0].filename == __file__


def test_subsampling_warns_and_takes_the_first_members():
    def model(x, y):
        mu = numpyro.sample("mu", dist.Normal(0, 1))
        with numpyro.plate("n", 5, subsample_size=2) as members:
            numpyro.sample("y", dist.Normal(mu * x[members], 1), obs=y[members])

    with pytest.warns(UserWarning, match="'n' takes 2 of 5.*subsample_size"):
        simulator = ModelSimulator(model, jnp.arange(5.0), jnp.asarray(Y))
    np.testing.assert_allclose(simulator.data["y"], Y[:2])
    assert simulator.sites["y"].shape == (2,)


def test_ordinary_models_do_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ModelSimulator(sized_by_data, Y)
