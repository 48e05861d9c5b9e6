# SPDX-License-Identifier: Apache-2.0
"""Which sites are latent, observed, deterministic or fixed, and what is known of them."""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import random
from numpyro import handlers
from numpyro.distributions import constraints
from numpyro.infer.reparam import CircularReparam, LocScaleReparam, TransformReparam
from numpyro.primitives import mutable

from numpyro_amortized.simulators import ModelSimulator, has_bijection

Y = np.array([28.0, 8, -3, 7, -1, 1, 18, 12])
SIGMA = np.array([15.0, 10, 16, 11, 9, 11, 10, 18])


def schools(J, sigma, y=None):
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfCauchy(5))
    with numpyro.plate("schools", J):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


def chain(y):
    a = numpyro.sample("a", dist.Normal(0, 1))
    b = numpyro.sample("b", dist.Normal(a, 1))
    numpyro.sample("y", dist.Normal(b, 1), obs=y)


def unobserved_chain():
    chain(None)


def roles(simulator):
    return {name: site.role for name, site in simulator.sites.items()}


def test_roles_and_metadata_of_a_hierarchy():
    sites = ModelSimulator(schools, 8, SIGMA, y=Y).sites
    assert [*sites] == ["mu", "tau", "theta", "y"]
    assert [site.role for site in sites.values()] == ["latent"] * 3 + ["observed"]
    assert [site.shape for site in sites.values()] == [(), (), (8,), (8,)]
    assert sites["y"].plates == (("schools", -1, 8),) and sites["mu"].plates == ()
    assert sites["tau"].support == constraints.positive
    assert sites["y"].dtype == jnp.zeros(()).dtype
    assert all(site.mask is None and not site.scanned for site in sites.values())


def test_data_are_kept_and_arguments_unchanged():
    y, sigma = Y.copy(), SIGMA.copy()
    simulator = ModelSimulator(schools, 8, sigma, y=y)
    simulator.sample(random.key(0), 3)
    np.testing.assert_allclose(simulator.data["y"], Y)
    np.testing.assert_array_equal(y, Y)
    np.testing.assert_array_equal(sigma, SIGMA)
    assert simulator.args[1] is sigma


def test_observed_names_replace_data():
    simulator = ModelSimulator(schools, 8, SIGMA, observed=("y",))
    assert roles(simulator)["y"] == "observed" and simulator.data == {}


def test_deterministic_sites_can_be_observed():
    def model():
        theta = numpyro.sample("theta", dist.Uniform(-1, 1))
        noise = numpyro.sample("noise", dist.Normal(0, 1))
        numpyro.deterministic("x", theta + noise)

    x = ModelSimulator(model, observed=["x"]).sites["x"]
    assert x.role == "observed" and not x.has_density


def test_data_wider_than_the_distribution_widen_it():
    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0, 1))
        numpyro.sample("y", dist.Normal(mu, 1), obs=y)

    simulator = ModelSimulator(model, np.zeros(20))
    assert simulator.sites["y"].shape == (20,)
    y = simulator.sample(random.key(0), 2)["y"]
    assert len(np.unique(y)) == 40


def test_supports_that_depend_on_other_sites_are_classes():
    def model(y):
        a = numpyro.sample("a", dist.HalfNormal(1))
        numpyro.sample("b", dist.Uniform(0, a))
        numpyro.sample("c", dist.Uniform(jnp.zeros(2), 3).to_event(1))
        numpyro.sample("d", dist.Dirichlet(jnp.ones(3)))
        numpyro.sample("y", dist.Normal(a, 1), obs=y)

    sites = ModelSimulator(model, 0.5).sites
    assert sites["b"].support is type(constraints.interval(0, 1))
    np.testing.assert_array_equal(sites["c"].support.upper_bound, [3, 3])
    assert sites["c"].event_dim == 1
    assert sites["d"].support == constraints.simplex


@pytest.mark.parametrize(
    "support, expected",
    [
        (constraints.real, True),
        (constraints.interval(0, 1), True),
        (type(constraints.interval(0, 1)), True),
        (constraints.independent(constraints.simplex, 1), True),
        (constraints.sphere, False),
        (constraints.nonnegative_integer, False),
        (None, False),
    ],
)
def test_has_bijection(support, expected):
    assert has_bijection(support) is expected


def test_fixed_root_is_left_out_and_stays_fixed():
    simulator = ModelSimulator(handlers.condition(chain, {"a": 30.0}), 1.0)
    assert roles(simulator) == {"b": "latent", "y": "observed"}
    assert simulator.fixed == ("a",)
    b = simulator.sample(random.key(0), 1000)["b"]
    assert abs(b.mean() - 30) < 5 / np.sqrt(1000)  # five standard errors


@pytest.mark.parametrize("name", ["y", "b"])
def test_conditioned_sites_that_depend_on_latents_are_data(name):
    simulator = ModelSimulator(handlers.condition(chain, {name: 2.0}), None, observed=None)
    assert roles(simulator)[name] == "observed" and simulator.fixed == ()
    np.testing.assert_allclose(simulator.data[name], 2)
    assert len(np.unique(simulator.sample(random.key(0), 10)[name])) == 10


def test_conditioned_root_and_leaf():
    simulator = ModelSimulator(handlers.condition(unobserved_chain, {"a": 1.0, "y": 2.0}))
    assert roles(simulator) == {"b": "latent", "y": "observed"}
    assert simulator.fixed == ("a",) and [*simulator.data] == ["y"]


@pytest.mark.parametrize("wrap", [handlers.condition, handlers.substitute])
def test_scope_hides_no_condition(wrap):
    model = handlers.scope(wrap(chain, {"a": 1.0}), prefix="s")
    assert ModelSimulator(model, 1.0).fixed == ("s/a",)


def test_other_data_stay_fixed_only_if_nothing_is_lost():
    def model(x, y):
        slope = numpyro.sample("slope", dist.Normal(0, 1))
        x = numpyro.sample("x", dist.Normal(0, 1).expand([3]).to_event(1), obs=x)
        numpyro.sample("y", dist.Normal(slope * x, 1).to_event(1), obs=y)

    simulator = ModelSimulator(model, np.arange(3.0), np.ones(3), observed=["y"])
    assert simulator.fixed == ("x",) and roles(simulator) == {"slope": "latent", "y": "observed"}
    assert roles(ModelSimulator(model, np.arange(3.0), np.ones(3)))["x"] == "observed"
    with pytest.raises(ValueError, match=r"\['y'\].*lost.*observed="):
        ModelSimulator(model, np.arange(3.0), np.ones(3), observed=["x"])


def test_do_cuts_the_graph():
    simulator = ModelSimulator(handlers.do(chain, {"b": 10.0}), 1.0)
    assert roles(simulator) == {"a": "latent", "b": "latent", "y": "observed"}
    draws = simulator.sample(random.key(0), 2000)
    error = 5 / np.sqrt(2000)  # five standard errors
    assert abs(draws["y"].mean() - 10) < error and abs(draws["b"].mean()) < 2 * error


def test_latents_are_the_reparametrized_ones():
    config = {"theta": LocScaleReparam(centered=0)}
    simulator = ModelSimulator(handlers.reparam(schools, config=config), 8, SIGMA, y=Y)
    assert roles(simulator)["theta_decentered"] == "latent"
    assert roles(simulator)["theta"] == "deterministic"
    draws = simulator.sample(random.key(0), 4)
    expected = draws["mu"][:, None] + draws["tau"][:, None] * draws["theta_decentered"]
    np.testing.assert_allclose(draws["theta"], expected, rtol=1e-4, atol=1e-4)


def test_transform_reparam():
    def model(y):
        base = dist.TransformedDistribution(
            dist.Normal(0, 1), dist.transforms.AffineTransform(3.0, 2.0)
        )
        a = numpyro.sample("a", base)
        numpyro.sample("y", dist.Normal(a, 1), obs=y)

    model = handlers.reparam(model, config={"a": TransformReparam()})
    assert roles(ModelSimulator(model, 1.0)) == {
        "a_base": "latent",
        "a": "deterministic",
        "y": "observed",
    }


def test_circular_reparam_is_improper():
    def model(y):
        a = numpyro.sample("a", dist.VonMises(0.0, 1.0))
        numpyro.sample("y", dist.Normal(a, 1), obs=y)

    with pytest.raises(ValueError, match=r"'a_unwrapped'.*ImproperUniform"):
        ModelSimulator(handlers.reparam(model, config={"a": CircularReparam()}), 1.0)


def test_deltas_are_deterministic():
    def model(y):
        a = numpyro.sample("a", dist.Normal(0, 1))
        b = numpyro.sample("b", dist.Delta(2 * a))
        c = numpyro.sample("c", dist.Delta(b + 1), obs=b + 1)
        numpyro.sample("y", dist.Delta(c), obs=y)

    simulator = ModelSimulator(model, 1.0)
    assert [*roles(simulator).values()] == ["latent"] + ["deterministic"] * 2 + ["observed"]
    assert not simulator.sites["y"].has_density


def test_obs_mask_splits_a_site():
    keep = np.array([True, False, True])

    def model(y, keep):
        mu = numpyro.sample("mu", dist.Normal(0, 1))
        with numpyro.plate("n", 3):
            numpyro.sample("y", dist.Normal(mu, 1), obs=y, obs_mask=keep)

    simulator = ModelSimulator(model, np.ones(3), keep)
    expected = {"mu": "latent", "y_observed": "observed", "y_unobserved": "latent"}
    assert roles(simulator) == expected | {"y": "deterministic"}
    np.testing.assert_array_equal(simulator.sites["y_observed"].mask, keep)
    draws = simulator.sample(random.key(0), 2)
    mixed = np.where(keep, draws["y_observed"], draws["y_unobserved"])
    np.testing.assert_array_equal(draws["y"], mixed)


def test_missing_values_found_from_nan():
    def model(y):
        keep = ~jnp.isnan(y)
        mu = numpyro.sample("mu", dist.Normal(0, 1))
        numpyro.sample("y", dist.Normal(mu, 1), obs=jnp.nan_to_num(y), obs_mask=keep)

    sites = ModelSimulator(model, np.array([1.0, np.nan, 2, 3])).sites
    np.testing.assert_array_equal(sites["y_observed"].mask, [True, False, True, True])
    assert "y" in sites


@pytest.mark.parametrize("mask", [False, np.array([[True], [False]])])
def test_mask_has_the_batch_shape(mask):
    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0, 1))
        with numpyro.plate("b", 2, dim=-2), numpyro.plate("n", 3), handlers.mask(mask=mask):
            numpyro.sample("y", dist.MultivariateNormal(mu * jnp.ones(4), jnp.eye(4)), obs=y)

    site = ModelSimulator(model, np.ones((2, 3, 4))).sites["y"]
    np.testing.assert_array_equal(site.mask, np.broadcast_to(mask, (2, 3)))
    assert site.role == "observed" and site.shape == (2, 3, 4)


def test_discrete_latents_and_integer_data():
    def model(n, k):
        z = numpyro.sample("z", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})
        numpyro.sample("k", dist.Binomial(n, jnp.where(z, 0.9, 0.2)), obs=k)

    simulator = ModelSimulator(model, 10, 3)
    assert roles(simulator) == {"z": "latent", "k": "observed"}
    assert jnp.issubdtype(simulator.sites["z"].dtype, jnp.integer)
    assert not has_bijection(simulator.sites["z"].support)
    assert len(np.unique(simulator.sample(random.key(0), 200)["k"])) > 5


def test_param_and_mutable_sites_are_fine():
    def model(y):
        loc = numpyro.param("loc", 1.0)
        mutable("state", {"count": jnp.zeros(())})
        a = numpyro.sample("a", dist.Normal(loc, 1))
        numpyro.sample("y", dist.Normal(a, 1), obs=y)

    assert [*ModelSimulator(model, 1.0).sites] == ["a", "y"]


@pytest.mark.parametrize(
    "args, axes",
    [
        ((8, SIGMA, Y), {"theta": (0,), "y": (0,)}),
        ((8, 10.0, Y), {"theta": (0,), "y": (0,)}),
    ],
)
def test_data_sized_axes(args, axes):
    sites = ModelSimulator(schools, *args).sites
    found = {name: site.data_sized for name, site in sites.items() if site.data_sized}
    assert found == axes


def test_data_sized_axes_are_those_of_the_data_alone():
    def regression(x, y):
        w = numpyro.sample("w", dist.Normal(0, 1).expand([x.shape[1]]).to_event(1))
        with numpyro.plate("n", len(x)):
            numpyro.sample("y", dist.Normal(x @ w, 1), obs=y)

    sites = ModelSimulator(regression, np.ones((7, 3)), np.ones(7)).sites
    assert sites["y"].data_sized == (0,) and sites["w"].data_sized == ()


def test_data_sized_axes_unknown_where_the_size_is_built_in():
    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0, 1))
        numpyro.sample("y", dist.Normal(mu, 1).expand([4]), obs=jnp.reshape(y, (4,)))

    assert ModelSimulator(model, np.ones(4)).sites["y"].data_sized == ()
