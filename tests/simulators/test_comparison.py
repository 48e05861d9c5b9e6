# SPDX-License-Identifier: Apache-2.0
"""Mixtures of models: their shares, their entries, and what they share."""

import pickle
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import random

from numpyro_amortized.simulators.base import Simulator, TraceableSimulator
from numpyro_amortized.simulators.branches import split_branches
from numpyro_amortized.simulators.comparison import ModelComparisonSimulator
from numpyro_amortized.simulators.model import ModelSimulator

Y = np.zeros(3)


def low(y):
    mu = numpyro.sample("mu", dist.Uniform(-2, -1))
    numpyro.sample("y", dist.Uniform(mu, -1).expand([3]), obs=y)


def high(y):
    mu = numpyro.sample("mu", dist.Uniform(1, 2))
    numpyro.sample("y", dist.Uniform(1, mu).expand([3]), obs=y)


def high_of_other_names(y):
    rate = numpyro.sample("rate", dist.Uniform(1, 2))
    count = numpyro.sample("count", dist.Bernoulli(0.5))
    numpyro.sample("y", dist.Uniform(1, 2 + count + rate).expand([3]), obs=y)


def low_on_host(rng):
    mu = rng.uniform(-2, -1)
    return {"mu": mu, "y": rng.uniform(mu, -1, 3)}


@cache
def simulator_of(model):
    return ModelSimulator(model, Y)


def mixture(*models, **options):
    simulators = [m if m is low_on_host else simulator_of(m) for m in models]
    return ModelComparisonSimulator(simulators, **options)


@cache
def even_mixture(models, is_mixed):
    return mixture(*models, use_mixed_batches=is_mixed)


def shares(draws):
    """Shares of the models; ``y`` must have the sign of the model that the index names."""
    indices = np.asarray(draws["model_indices"])
    assert indices.dtype == np.int32 and (indices.sum(-1) == 1).all()
    assert (np.sign(draws["y"]) == np.where(indices[..., 1:], 1, -1)).all()
    return indices.reshape(-1, indices.shape[-1]).mean(0)


PAIRS = [
    (low, high),
    pytest.param((low, high_of_other_names), marks=pytest.mark.verify),
    (low_on_host, high),
]


@pytest.mark.parametrize("models", PAIRS)
def test_shares_of_mixed_batches(models):
    simulator = mixture(*models, probs=[0.8, 0.2])
    np.testing.assert_allclose(simulator.probs, [0.8, 0.2])
    assert simulator.num_models == len(simulator.simulators) == 2
    # The standard error of a share of 4,000 draws is sqrt(.16 / 4000) = .0063; four of them.
    assert abs(shares(simulator.sample(random.key(0), 4000))[0] - 0.8) < 0.025


@pytest.mark.parametrize("models", PAIRS)
def test_shares_of_unmixed_batches(models):
    simulator = mixture(*models, probs=[0.8, 0.2], use_mixed_batches=False)
    each = np.stack([shares(simulator.sample(random.key(i), (4, 5))) for i in range(100)])
    assert set(each[:, 0]) == {0, 1}
    # The standard error of a share of 100 batches is sqrt(.16 / 100) = .04; four of them.
    assert abs(each[:, 0].mean() - 0.8) < 0.16


def test_probabilities():
    by_logits = mixture(low, high, high, logits=np.log([6.0, 3.0, 1.0]))
    np.testing.assert_allclose(by_logits.probs, [0.6, 0.3, 0.1])
    np.testing.assert_allclose(mixture(low, high, high).probs, 1 / 3)


def test_a_model_of_probability_zero_is_never_drawn():
    draws = mixture(low, high, probs=[0, 1]).sample(random.key(0), 100)
    assert shares(draws)[1] == 1


@pytest.mark.parametrize("models", PAIRS)
@pytest.mark.parametrize("is_mixed", [True, False])
def test_equal_keys_give_equal_batches(models, is_mixed):
    simulator = even_mixture(models, is_mixed)
    once, again = (simulator.sample(random.key(1), (4, 5)) for _ in range(2))
    raw = simulator.sample(random.key_data(random.key(1)), (4, 5))
    for name, values in once.items():
        assert values.shape[:2] == (4, 5)
        np.testing.assert_array_equal(values, again[name])
        np.testing.assert_array_equal(values, raw[name])
    other = simulator.sample(random.key(2), (4, 5))
    assert not np.array_equal(once["y"], other["y"])
    assert simulator.sample(random.key(1), ())["model_indices"].shape == (2,)


def test_traceable_models_are_mixed_inside_of_a_loop():
    simulator = even_mixture((low, high_of_other_names), True)
    assert isinstance(simulator, TraceableSimulator)

    def step(total, key):
        draws = jax.vmap(simulator.simulate)(random.split(key, 8))
        return total + draws["model_indices"].sum(0), draws

    keys = random.split(random.key(0), 50)
    total, draws = jax.jit(lambda: jax.lax.scan(step, jnp.zeros(2, int), keys))()
    assert total.sum() == 400
    shares(draws)
    one = jax.jit(simulator.simulate)(random.key(3))
    for name, value in simulator.simulate(random.key(3)).items():
        np.testing.assert_allclose(value, one[name], rtol=1e-6)


@pytest.mark.parametrize(
    "models, options",
    [
        ((low_on_host, high), {}),
        ((low, high), {"use_mixed_batches": False}),
        ((low, high), {"shared_simulator": lambda rng: {"y": rng.normal(size=3)}}),
    ],
)
def test_what_is_decided_for_a_batch_has_sample_alone(models, options):
    simulator = mixture(*models, **options)
    assert isinstance(simulator, ModelComparisonSimulator)
    assert not isinstance(simulator, TraceableSimulator) and not hasattr(simulator, "simulate")


def test_copies_by_pickle():
    simulator = ModelComparisonSimulator([_Constant(0.0), _Constant(1.0)])
    copy = pickle.loads(pickle.dumps(simulator))
    draws = [s.sample(random.key(0), 10)["x"] for s in (simulator, copy)]
    np.testing.assert_array_equal(*draws)


class _Constant(Simulator):
    """A simulator of the user's own."""

    def __init__(self, value, name="x"):
        self.value, self.name = value, name

    def sample(self, rng_key, batch_shape, *, workers=None):
        size = batch_shape if isinstance(batch_shape, tuple) else (batch_shape,)
        return {self.name: np.full(size, self.value)}


@pytest.mark.parametrize("is_mixed", [True, False])
@pytest.mark.parametrize("first", [low, low_on_host])
def test_entries_that_not_all_models_have_are_dropped(first, is_mixed):
    simulator = even_mixture((first, high_of_other_names), is_mixed)
    for seed in range(4):
        assert {*simulator.sample(random.key(seed), (4, 5))} == {"y", "model_indices"}


@pytest.mark.parametrize("is_mixed, fill_value", [(True, np.nan), (True, -1), (False, np.nan)])
@pytest.mark.parametrize("first", [low, low_on_host])
def test_entries_that_not_all_models_have_are_filled(first, is_mixed, fill_value):
    simulator = mixture(
        first,
        high_of_other_names,
        use_mixed_batches=is_mixed,
        key_conflicts="fill",
        fill_value=fill_value,
    )
    for seed in range(4):
        draws = simulator.sample(random.key(seed), (4, 5))
        assert {*draws} == {"mu", "rate", "count", "y", "model_indices"}
        assert draws["rate"].dtype == jnp.result_type(float)
        assert draws["count"].dtype == jnp.result_type(np.int32, fill_value)
        second = np.asarray(draws["model_indices"])[..., 1] == 1
        for name, has_it in {"mu": ~second, "rate": second, "count": second}.items():
            filled = np.full((~has_it).sum(), fill_value)
            np.testing.assert_array_equal(draws[name][~has_it], filled)
            assert np.isfinite(draws[name][has_it]).all()
            assert (np.asarray(draws[name][has_it]) != -1).all()


@pytest.mark.parametrize("first", [low, low_on_host])
def test_entries_that_not_all_models_have_are_refused(first):
    with pytest.raises(ValueError, match=r"lack .*'mu': \[1\].*'rate': \[0\].*Rename"):
        mixture(first, high_of_other_names, key_conflicts="error").sample(random.key(0), 2)
    mixture(first, high, key_conflicts="error").sample(random.key(0), 2)


def test_models_without_a_common_entry_are_refused():
    with pytest.raises(ValueError, match=r"none is left of \['x', 'z'\]"):
        ModelComparisonSimulator([_Constant(0.0), _Constant(0.0, "z")]).sample(random.key(0), 2)


def vector(rng_key):
    return {"x": random.normal(rng_key, (3,)), "z": random.normal(rng_key)}


def scalar(rng_key):
    return {"x": random.normal(rng_key), "z": 0}


def test_entries_of_one_name_that_differ_are_refused():
    with pytest.raises(ValueError, match=r"'x': \['float..\[3\]', 'float..\[\]'\].*'z': .*int"):
        ModelComparisonSimulator([vector, scalar])


def test_shapes_may_differ_between_unmixed_batches():
    simulator = ModelComparisonSimulator([vector, scalar], use_mixed_batches=False)
    draws = [simulator.sample(random.key(i), 4) for i in range(10)]
    for each in draws:
        is_first = each["model_indices"][0, 0] == 1
        assert each["x"].shape == ((4, 3) if is_first else (4,))
    assert len({each["x"].shape for each in draws}) == 2


def test_the_name_of_the_indices_is_taken():
    with pytest.raises(ValueError, match=r"'model_indices'.*Rename"):
        ModelComparisonSimulator([vector, lambda rng_key: {"model_indices": 0.0}])


def sized(n, x=None, y=None):
    slope = numpyro.sample("slope", dist.Uniform(1, 2))
    with numpyro.plate("rows", n):
        numpyro.sample("y", dist.Delta(slope * (jnp.ones(n) if x is None else x)), obs=y)


def on_host(rng, n, x):
    return {"slope": 1.0, "y": np.full(n, 1.0) * x}


def batched_on_host(batch_shape, rng, n, x):
    return {"slope": rng.uniform(1, 2, batch_shape), "y": np.ones((*batch_shape, n)) * x}


def in_jax(rng_key, n, x):
    return {"slope": random.uniform(rng_key), "y": jnp.ones(n) * x}


def prior(rng_key):
    return {"slope": random.uniform(rng_key)}


def likelihood(rng, slope, n, x):
    return {"y": slope * np.ones(n) * x}


def context(rng):
    n = rng.integers(2, 4)
    return {"n": n, "x": rng.uniform(1, 2, n)}


def function_simulators():
    from numpyro_amortized.simulators.functions import LambdaSimulator

    model = ModelSimulator(sized, 3, observed=["y"])
    return {
        "models": [model, ModelSimulator(sized, n=3, x=Y, observed=["y"])],
        "functions": [on_host, in_jax, LambdaSimulator(batched_on_host, is_batched=True)],
        "both": [model, on_host],
        "sequences": [[prior, likelihood], in_jax],
    }


@pytest.mark.parametrize("is_mixed", [True, pytest.param(False, marks=pytest.mark.verify)])
@pytest.mark.parametrize("kind", ["models", "functions", "both", "sequences"])
def test_the_context_is_common_to_a_batch_and_given_to_all_models(kind, is_mixed):
    simulator = ModelComparisonSimulator(
        function_simulators()[kind], use_mixed_batches=is_mixed, shared_simulator=context
    )
    sizes = set()
    for seed in range(5):
        draws = simulator.sample(random.key(seed), (2, 8))
        n = int(draws["n"][0, 0])
        sizes.add(n)
        assert draws["n"].shape == (2, 8) and (draws["n"] == n).all()
        assert draws["x"].shape == draws["y"].shape == (2, 8, n)
        assert (draws["x"] == draws["x"][0, 0]).all()
        ratio = draws["y"] / draws["x"]
        np.testing.assert_allclose(ratio, np.broadcast_to(ratio[..., :1], ratio.shape), rtol=1e-5)
    assert len(sizes) > 1


def test_contexts_of_one_size_compile_once(compilations):
    def fixed_size(rng):
        return {"n": 3, "x": rng.uniform(1, 2, 3)}

    simulator = ModelComparisonSimulator([in_jax, in_jax], shared_simulator=fixed_size)
    simulator.sample(random.key(0), 8)
    compilations.clear()
    simulator.sample(random.key(1), 8)
    assert not compilations


def test_a_context_that_no_model_takes_is_refused():
    simulator = mixture(low, high, shared_simulator=lambda rng: {"size": rng.integers(3)})
    with pytest.raises(ValueError, match=r"no model takes any of \['size'\]"):
        simulator.sample(random.key(0), 2)


def test_a_context_with_the_name_of_an_entry_is_refused():
    simulator = mixture(low, high, shared_simulator=lambda rng: {"y": rng.normal(size=3)})
    with pytest.raises(ValueError, match=r"\['y'\] are names of the context"):
        simulator.sample(random.key(0), 2)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"probs": [0.5, 0.5], "logits": [0, 0]}, "got both"),
        ({"probs": [1.0]}, r"each of 2 models, got shape \(1,\)"),
        ({"logits": [0.0, 0.0, 0.0]}, r"each of 2 models, got shape \(3,\)"),
        ({"probs": [0.5, 0.6]}, "sum of 1, got 1.1"),
        ({"probs": [1.5, -0.5]}, "negative"),
        ({"probs": [np.nan, 1]}, "finite"),
        ({"logits": [np.inf, 0.0]}, "finite"),
        ({"key_conflicts": "keep"}, r"'drop', 'fill', 'error'.*got 'keep'"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ModelComparisonSimulator([vector, vector], **options)


@pytest.mark.parametrize("fill_value", [np.zeros(2), "nan"])
def test_fill_values_are_scalars(fill_value):
    with pytest.raises(TypeError, match="fill_value: expected a scalar"):
        ModelComparisonSimulator([vector, vector], fill_value=fill_value)


@pytest.mark.parametrize("simulators, error", [(vector, TypeError), ([vector], ValueError)])
def test_at_least_two_models(simulators, error):
    with pytest.raises(error, match="simulators: expected"):
        ModelComparisonSimulator(simulators)


def branching(y):
    side = numpyro.sample("side", dist.Bernoulli(0.2), infer={"branching": True})
    mu = numpyro.sample("mu", dist.Uniform(1, 2))
    sign = jax.lax.switch(side, [lambda: -1.0, lambda: 1.0])
    numpyro.sample("y", dist.Normal(sign * mu, 1e-3).expand([3]), obs=y)


def branching_by_if(y):
    side = numpyro.sample("side", dist.Categorical(jnp.array([0.8, 0.2])), infer={"branching": 1})
    (low if side == 0 else high_of_other_names)(y)


def test_a_marked_model_is_split():
    simulator = ModelComparisonSimulator(ModelSimulator(branching, Y))
    assert isinstance(simulator, TraceableSimulator)
    np.testing.assert_allclose(simulator.probs, [0.8, 0.2], rtol=1e-6)
    assert all({*each.sites} == {"mu", "y"} for each in simulator.simulators)
    draws = simulator.sample(random.key(0), 4000)
    # The standard error of a share of 4,000 draws is .0063; four of them.
    assert abs(shares(draws)[0] - 0.8) < 0.025


def test_other_probabilities_than_those_of_the_marked_site():
    simulator = ModelComparisonSimulator(ModelSimulator(branching, Y), probs=[0.5, 0.5])
    np.testing.assert_allclose(simulator.probs, 0.5)


def test_branches_may_be_chosen_by_if():
    simulators, probs, site, values = split_branches(branching_by_if, Y)
    assert (site, values) == ("side", (0, 1))
    assert [[*each.sites] for each in simulators] == [["mu", "y"], ["rate", "count", "y"]]
    shares(ModelComparisonSimulator(simulators, probs=probs).sample(random.key(0), 100))


def unmarked(y):
    low(y)


def marked_twice(y):
    numpyro.sample("a", dist.Bernoulli(0.2), infer={"branching": True})
    numpyro.sample("b", dist.Bernoulli(0.2), infer={"branching": True})
    low(y)


def marked_with(make, **options):
    def model(y):
        p = numpyro.sample("p", dist.Uniform(0, 1))
        numpyro.sample("a", make(p), infer={"branching": True}, **options)
        low(y)

    return model


@pytest.mark.parametrize(
    "model, message",
    [
        (unmarked, r"No site among \['mu', 'y'\] is marked"),
        (marked_twice, r"\['a', 'b'\] are marked.*one site"),
        (marked_with(lambda p: dist.Bernoulli(p)), "depends on other sites"),
        (marked_with(lambda p: dist.Normal(0, 1)), "Normal, which has no finite list"),
        (marked_with(lambda p: dist.Poisson(3.0)), "Poisson, which has no finite list"),
        (marked_with(lambda p: dist.Bernoulli(0.5 * jnp.ones(2))), r"shape \(2,\)"),
        (marked_with(lambda p: dist.Bernoulli(0.5), obs=1), "has a value already"),
    ],
)
def test_models_that_cannot_be_split(model, message):
    with pytest.raises(ValueError, match=message):
        split_branches(model, Y)
