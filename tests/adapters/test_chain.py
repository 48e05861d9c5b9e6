# SPDX-License-Identifier: Apache-2.0
"""Chains as a whole: binding, batches, what may be undone, printing, saving."""

import pickle
from dataclasses import dataclass
from typing import ClassVar, final

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import random
from numpyro.distributions import constraints

import numpyro_amortized as npa
from numpyro_amortized import Adapter
from numpyro_amortized.adapters.base import Bijection
from tests.adapters.laws import assert_same

CHAIN = (
    Adapter()
    .constrain("sigma", lower=0)
    .constrain("share", constraint=constraints.simplex)
    .concatenate(["mu", "sigma", "share"], into="inference_variables")
    .standardize("inference_variables")
    .nan_to_num("y", return_mask=True)
    .standardize("y", pooled=0, mask="y_mask")
    .as_set("y", mask="y_mask")
    .rename("y", "summary_variables")
    .one_hot("group", 3)
    .log("dose")
    .expand_dims("dose", axis=0)
    .concatenate(["dose", "group"], into="inference_conditions")
    .drop("y_mask")
)
SOURCES = ["mu", "sigma", "share"]


@pytest.fixture(scope="module")
def draws():
    rng = np.random.default_rng(0)
    y = rng.normal(5.0, 2.0, (200, 7))
    dtype = jnp.result_type(float)
    return {
        "mu": rng.normal(size=200).astype(dtype),
        "sigma": rng.gamma(2.0, size=200).astype(dtype),
        "share": rng.dirichlet([3.0, 2.0, 4.0], 200).astype(dtype),
        "y": np.where(rng.random((200, 7)) < 0.2, np.nan, y).astype(dtype),
        "group": rng.integers(0, 3, 200),
        "dose": rng.gamma(2.0, size=200).astype(dtype),
    }


@pytest.fixture(scope="module")
def bound(draws):
    return CHAIN.bind(draws)


def first(draws, num):
    return jax.tree.map(lambda x: x[:num], draws)


def test_inputs_of_batches(bound, draws):
    inputs = bound(draws)
    shapes = {name: value.shape for name, value in inputs.items()}
    assert shapes == {
        "inference_variables": (200, 4),
        "summary_variables": (200, 7, 1),
        "summary_mask": (200, 7),
        "inference_conditions": (200, 4),
    }
    np.testing.assert_array_equal(inputs["summary_mask"], ~np.isnan(draws["y"]))
    variables = np.asarray(inputs["inference_variables"])
    np.testing.assert_allclose(variables.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(variables.std(0), 1, atol=1e-4)
    assert all(np.isfinite(value).all() for value in inputs.values())


@pytest.mark.verify
@pytest.mark.parametrize("batch_shape", [(), (4,), (2, 3)])
def test_any_batch_axes(bound, draws, batch_shape):
    num = int(np.prod(batch_shape))
    expected = bound(first(draws, num))
    data = {n: x[:num].reshape((*batch_shape, *x.shape[1:])) for n, x in draws.items()}
    inputs = jax.jit(bound.forward)(data)
    flat = {n: x.reshape((num, *x.shape[len(batch_shape) :])) for n, x in inputs.items()}
    assert_same(flat, expected, 1e-5)
    assert bound.log_det_jac(data).shape == batch_shape
    back = jax.jit(bound.inverse)({"inference_variables": inputs["inference_variables"]})
    assert_same(back, {name: data[name] for name in SOURCES}, 1e-4)


def test_what_passed_a_one_way_map_is_left_out_of_the_inverse(bound, draws):
    back = bound.inverse(bound(draws))
    assert set(back) == {*SOURCES, "dose"}
    np.testing.assert_allclose(back["dose"], draws["dose"], rtol=1e-5)


@pytest.mark.verify
def test_log_det_is_that_of_the_inference_variables(bound, draws):
    data = first(draws, 3)
    log_det_jac = jax.jit(bound.log_det_jac)
    log_det = log_det_jac(data)
    latents = {name: data[name] for name in SOURCES}
    np.testing.assert_allclose(log_det, log_det_jac(latents), rtol=1e-6)

    def coordinates(z):
        x = bound.inverse({"inference_variables": z})
        return jnp.concatenate([x["mu"][None], x["sigma"][None], x["share"][:-1]])

    jacobians = jax.jit(jax.vmap(jax.jacfwd(coordinates)))(bound(data)["inference_variables"])
    np.testing.assert_allclose(log_det, -np.linalg.slogdet(jacobians)[1], rtol=1e-4, atol=1e-4)
    slopes = jax.jit(jax.grad(lambda x: bound.log_det_jac(x).sum()))(latents)
    assert all(np.isfinite(slope).all() for slope in slopes.values())
    observed = {name: data[name] for name in ("y", "group", "dose")}
    np.testing.assert_array_equal(bound.log_det_jac(observed), np.zeros(3))


def test_observations_alone_and_latents_alone(bound, draws):
    data = first(draws, 2)
    latents = bound({name: data[name] for name in SOURCES})
    assert set(latents) == {"inference_variables"}
    rest = {name: x for name, x in data.items() if name not in SOURCES}
    assert set(bound(rest)) == set(bound(data)) - {"inference_variables"}


def test_chains_are_not_changed(draws):
    start = Adapter().log("dose")
    longer = start.scale("dose", 2.0)
    assert len(start.transforms) == 1 and len(longer.transforms) == 2
    unbound = Adapter().standardize("dose")
    bound = unbound.bind(draws)
    assert bound.is_bound and not unbound.is_bound
    with pytest.raises(RuntimeError, match=r"moments of \['dose'\] are not fitted"):
        unbound(draws)


def test_without_binding_one_simulation_at_a_time(draws):
    chain = Adapter().log("sigma").concatenate(["sigma", "mu"], into="inference_variables")
    one = {name: draws[name][0] for name in ("mu", "sigma")}
    np.testing.assert_allclose(
        chain(one)["inference_variables"], [np.log(one["sigma"]), one["mu"]], rtol=1e-6
    )
    np.testing.assert_allclose(chain.log_det_jac(one), -np.log(one["sigma"]), rtol=1e-5)
    with pytest.raises(RuntimeError, match="bind"):
        chain.inverse({"inference_variables": jnp.zeros(2)})
    with pytest.raises(RuntimeError, match="bind"):
        Adapter().log(["dose"]).apply(exclude="dose", forward=jnp.exp).inverse(one)


@pytest.mark.parametrize(
    "chain, step, entry",
    [
        (Adapter().take("share", indices=[0]).rename("share", "inference_variables"), 1, "share"),
        (
            Adapter().log("sigma").nan_to_num(["sigma", "mu"])
            .concatenate(["mu", "sigma"], into="inference_variables"),
            2,
            "mu",
        ),
        (Adapter().rename("share", "inference_variables").as_time_series("inference_variables")
         .squeeze("inference_variables", axis=1), 2, "inference_variables"),
        (Adapter().broadcast("mu", to="share", exclude=()).rename("mu", "inference_variables"),
         1, "mu"),
        (Adapter().apply("share", forward=jnp.cumsum).rename("share", "inference_variables"),
         1, "share"),
    ],
)  # fmt: skip
def test_one_way_maps_of_inference_variables_are_refused(draws, chain, step, entry):
    message = rf"step {step} .*cannot be undone, and changes '{entry}'.*Only bijections"
    with pytest.raises(ValueError, match=message):
        chain.bind(draws)


def test_one_way_maps_of_other_entries_are_not(draws):
    chain = Adapter().drop("mu").keep(["sigma", "y"]).nan_to_num("y").log("sigma")
    chain = chain.concatenate("sigma", into="inference_variables").bind(draws)
    assert set(chain.inverse({"inference_variables": jnp.zeros(1)})) == {"sigma"}


@pytest.mark.parametrize(
    "chain, message",
    [
        (Adapter().log("sgima"), r"expected entries from \['dose'.*got \['sgima'\]"),
        (Adapter().rename("sigma", "inference_variables"), r"to be a vector.*shape \(\)"),
        (Adapter().as_set("y").rename("y", "inference_conditions"), r"to be a vector.*\(7, 1\)"),
        (
            Adapter().split("share", into=["inference_variables", "rest"], indices_or_sections=[1]),
            r"undo the split of 'share'.*missing: \['rest'\]",
        ),
        (
            Adapter()
            .apply("share", forward=lambda x: x, inverse=lambda z: z[:2])
            .rename("share", "inference_variables"),
            r"the inverse gives 'share' the shape \(2,\), expected \(3,\)",
        ),
        (
            Adapter()
            .standardize("share", mean=0, std=1, mask="m")
            .rename("share", "inference_variables"),
            "its mask 'm'",
        ),
    ],
)
def test_errors_of_binding(draws, chain, message):
    with pytest.raises(ValueError, match=message):
        chain.bind(draws)


def test_errors_say_the_step(draws):
    with pytest.raises(ValueError) as caught:
        Adapter().log("sigma").log("x").bind(draws)
    assert caught.value.__notes__ == ["In step 2 of the adapter: x: log"]


@pytest.mark.parametrize("draws", [{}, {"x": np.ones(3), "y": np.ones((4, 2))}, {"x": 1.0}])
def test_pilot_draws_have_a_leading_axis(draws):
    with pytest.raises(ValueError, match="one leading axis of simulations"):
        Adapter().bind(draws)


def test_batch_axes_must_agree(bound, draws):
    with pytest.raises(ValueError, match="same leading batch axes"):
        bound(first(draws, 3) | {"mu": draws["mu"][0]})


def test_names_may_be_any_sequence_of_strings():
    with pytest.raises(TypeError, match="name of an entry, or several, got 3"):
        Adapter().log(3)


def test_printed(bound):
    before, after = str(CHAIN), str(bound)
    assert "sigma: unconstrained from GreaterThan(lower_bound=0)" in before
    assert "inference_variables: to be standardized by pilot draws" in before
    lines = after.splitlines()
    assert lines[0] == "entries: dose (), group (), mu (), share (3,), sigma (), y (7,)"
    joined = lines.index("mu, sigma, share: joined along axis -1 into inference_variables")
    assert lines[joined + 1] == "  -> inference_variables (4,)"
    assert "inference_variables: standardized by pilot draws" in lines
    chosen = Adapter().standardize(exclude=["mu"], predicate=is_scalar, mean=0.0, std=1.0)
    assert str(chosen) == "all entries but mu where is_scalar: standardized"


def is_scalar(name, struct):
    return struct.shape == ()


def test_filters_choose_for_good_when_bound(draws):
    chain = Adapter().apply(predicate=is_scalar, forward=jnp.exp, inverse=jnp.log, exclude="group")
    adapter = chain.bind(draws)
    (step,) = adapter.transforms
    assert set(step.names) == {"mu", "sigma", "dose"}
    data = first(draws, 2)
    np.testing.assert_allclose(adapter(data)["mu"], np.exp(data["mu"]), rtol=1e-5)
    np.testing.assert_allclose(adapter.inverse(adapter(data))["mu"], data["mu"], rtol=1e-4)
    np.testing.assert_array_equal(adapter(data)["share"], data["share"])


@pytest.mark.parametrize("adapter", ["bound", "unbound", "filtered"])
def test_saved_and_restored(adapter, bound, draws):
    filtered = Adapter().standardize(exclude=["y"], predicate=is_scalar, mean=0.0, std=2.0)
    made = {"bound": bound, "unbound": CHAIN, "filtered": filtered}[adapter]
    again = pickle.loads(pickle.dumps(made))
    assert str(again) == str(made)
    if adapter == "bound":
        data = first(draws, 3)
        assert_same(again(data), made(data), 0)
        np.testing.assert_array_equal(again.log_det_jac(data), made.log_det_jac(data))


def test_nested_entries_in_batches():
    rng = np.random.default_rng(1)
    draws = {"prior": {"a": rng.normal(size=6), "b": rng.normal(size=(6, 2))}}
    adapter = Adapter().ungroup("prior").concatenate(["a", "b"], into="inference_variables")
    adapter = adapter.bind(draws)
    inputs = adapter(draws)
    assert inputs["inference_variables"].shape == (6, 3)
    np.testing.assert_allclose(adapter.inverse(inputs)["prior"]["b"], draws["prior"]["b"])
    with pytest.raises(ValueError, match="same leading batch axes"):
        adapter({"prior": {"a": np.ones(6), "b": np.ones((5, 2))}})


def regression(x, y):
    """Both the slope and the covariates' scale matter."""
    slope = numpyro.sample("slope", dist.Normal(0, 1))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1))
    with numpyro.plate("n", 5):
        numpyro.sample("y", dist.Normal(slope * x, sigma), obs=y)


def test_a_derived_adapter_is_extended():
    simulator = npa.ModelSimulator(regression, np.arange(5.0), np.zeros(5))
    draws = simulator.sample(random.key(0), 50)
    derived = Adapter.for_posterior(simulator)
    extended = (
        derived.scale("inference_variables", 2.0)
        .standardize("inference_conditions")
        .take("inference_conditions", indices=[0, 4])
    )
    adapter = extended.bind(draws)
    inputs = jax.jit(adapter.forward)(draws)
    before = jax.jit(derived.forward)(draws)["inference_variables"]
    np.testing.assert_allclose(inputs["inference_variables"], 2 * before, rtol=1e-6)
    assert inputs["inference_conditions"].shape == (50, 2)
    latents = {name: draws[name] for name in ("slope", "sigma")}
    back = jax.jit(adapter.inverse)({"inference_variables": inputs["inference_variables"]})
    assert_same(back, latents, 1e-4)
    # two variables, each scaled by two
    np.testing.assert_allclose(
        jax.jit(adapter.log_det_jac)(latents),
        jax.jit(derived.log_det_jac)(draws) + 2 * np.log(2),
        rtol=1e-4,
    )
    assert "inference_variables: multiplied by 2.0" in str(adapter)
    with pytest.raises(ValueError, match="cannot be undone"):
        derived.take("inference_variables", indices=[0]).bind(draws)


@final
@dataclass(frozen=True)
class Whiten(Bijection):
    """Scales by a covariate, which the inverse needs as well."""

    needs: ClassVar = ("width",)

    def forward(self, data):
        return {n: x / data["width"] if n == "theta" else x for n, x in data.items()}

    def inverse(self, data):
        return {n: z * data["width"] if n == "theta" else z for n, z in data.items()}

    def log_det_jac(self, data):
        return -data["theta"].size * jnp.log(data["width"])

    def describe(self):
        return ["theta: divided by width"]


def test_a_bijection_may_depend_on_another_entry():
    draws = {"theta": np.ones((6, 2)), "width": np.arange(1.0, 7.0)}
    chain = Adapter().append(Whiten()).standardize("width").expand_dims("width", axis=0)
    chain = chain.rename("theta", "inference_variables").bind(draws)
    inputs = chain(draws)
    variables = {"inference_variables": inputs["inference_variables"]}
    back = chain.inverse(variables | {"width": draws["width"]})  # as it is before all steps
    np.testing.assert_allclose(back["theta"], draws["theta"], rtol=1e-6)
    np.testing.assert_array_equal(back["width"], draws["width"])
    np.testing.assert_allclose(chain.log_det_jac(draws), -2 * np.log(draws["width"]), rtol=1e-6)


def test_a_derived_adapter_prints_its_shapes():
    simulator = npa.ModelSimulator(regression, np.arange(5.0), np.zeros(5))
    text = str(Adapter.for_posterior(simulator))
    assert text.startswith("entries: slope (), sigma (), y (5,)")
    assert "  -> inference_variables (2,)" in text


def test_the_type_of_the_draws_is_kept():
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        draws = {"a": rng.gamma(2.0, size=30), "b": rng.normal(size=(30, 2))}
        chain = Adapter().constrain("a", lower=0).standardize()
        adapter = chain.concatenate(["a", "b"], into="inference_variables").bind(draws)
        inputs = adapter(draws)
        assert inputs["inference_variables"].dtype == np.float64
        assert_same(adapter.inverse(inputs), draws, 1e-12)
