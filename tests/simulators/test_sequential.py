# SPDX-License-Identifier: Apache-2.0
"""Steps of every kind get by name what earlier steps returned."""

from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import random
from numpyro import handlers

from numpyro_amortized.simulators.base import Simulator, TraceableSimulator
from numpyro_amortized.simulators.functions import LambdaSimulator
from numpyro_amortized.simulators.model import ModelSimulator
from numpyro_amortized.simulators.sequential import SequentialSimulator, make_simulator

PRIORS = {
    "device": lambda rng_key: {"a": random.normal(rng_key), "v": jnp.arange(3.0)},
    "host": lambda rng: {"a": rng.normal(), "v": np.arange(3.0)},
    "batched": LambdaSimulator(
        lambda shape, rng: {"a": rng.normal(size=shape), "v": np.ones((*shape, 1)) * np.arange(3)},
        is_batched=True,
    ),
    "batched device": LambdaSimulator(
        lambda shape, rng_key: {"a": random.normal(rng_key, shape), "v": jnp.arange(3.0)[None]},
        is_batched=True,
    ),
}
# Each returns w = v + a.
LIKELIHOODS = {
    "device": lambda a, v, rng_key: {"w": v + a},
    "host": lambda a, v, rng: {"w": v + a},
    "batched": LambdaSimulator(lambda shape, v, a, rng: {"w": v + a[..., None]}, is_batched=True),
    "batched device": LambdaSimulator(
        lambda shape, v, a, rng_key: {"w": v + a[..., None]}, is_batched=True
    ),
}
TRACEABLE = ("device", "batched device")


@pytest.mark.parametrize(("first", "second"), [*product(PRIORS, LIKELIHOODS)])
def test_values_reach_later_steps(first, second):
    simulator = SequentialSimulator([PRIORS[first], LIKELIHOODS[second]])
    draws = simulator.sample(random.key(0), (4, 5))
    assert {n: x.shape for n, x in draws.items()} == {"a": (4, 5), "v": (4, 5, 3), "w": (4, 5, 3)}
    np.testing.assert_allclose(draws["w"], np.arange(3) + draws["a"][..., None], rtol=1e-6)
    assert len(np.unique(draws["a"])) == 20
    again = simulator.sample(random.key(0), (4, 5))
    np.testing.assert_array_equal(draws["w"], again["w"])
    both = first in TRACEABLE and second in TRACEABLE
    assert isinstance(simulator, TraceableSimulator) == both


def test_steps_draw_independently():
    def first(rng):
        return {"x": rng.normal()}

    def second(rng):
        return {"y": rng.normal()}

    def third(rng_key):
        return {"z": random.normal(rng_key)}

    batched = LambdaSimulator(lambda n, rng: {"u": rng.normal(size=n)}, is_batched=True)
    draws = SequentialSimulator([first, second, batched, third]).sample(random.key(0), 10_000)
    # Six correlations with standard errors of .01.
    assert abs(np.corrcoef([*draws.values()]) - np.eye(4)).max() < 0.05


def test_many_steps_and_defaults():
    def numbers(rng):
        return {"a": 1, "b": 2}

    def sums(rng, b, a=10, c=100):
        return {"s": a + b + c}

    def everything(rng, **values):
        return {"t": sum(values.values())}

    draws = SequentialSimulator([numbers, sums, everything]).sample(random.key(0), 3)
    assert {n: int(x[0]) for n, x in draws.items()} == {"a": 1, "b": 2, "s": 103, "t": 106}


def test_bound_arguments_are_defaults():
    def shifted(rng, loc, scale):
        return {"x": loc + scale}

    step = partial(shifted, loc=1.0, scale=5.0)
    draws = SequentialSimulator([lambda rng: {"scale": 2.0}, step]).sample(random.key(0), 2)
    np.testing.assert_array_equal(draws["x"], 3.0)


def test_scalars_of_batched_steps_hold_for_the_batch():
    size = LambdaSimulator(lambda shape, rng: {"n": rng.integers(3, 9)}, is_batched=True)
    draws = SequentialSimulator([size, lambda n, rng: {"x": rng.normal(size=n)}]).sample(
        random.key(0), 20
    )
    assert draws["n"].shape == (20,) and draws["x"].shape == (20, draws["n"][0])


def test_equal_names_keep_the_last():
    steps = [lambda rng: {"x": 1.0}, lambda x, rng: {"x": x + 1}, lambda x, rng: {"y": x}]
    draws = SequentialSimulator(steps).sample(random.key(0), 2)
    np.testing.assert_array_equal([draws["x"], draws["y"]], 2.0)


@pytest.mark.parametrize("rest", [[], [lambda rng_key: {"z": 0.0}]])
def test_inputs_cannot_be_changed_in_place(rest):
    def likelihood(v, rng):
        v += 1
        return {"w": v}

    with pytest.raises(ValueError, match="read-only"):
        SequentialSimulator([PRIORS["host"], *rest, likelihood]).sample(random.key(0), 2)


@pytest.mark.parametrize("kind", LIKELIHOODS)
def test_missing_values_are_named(kind):
    steps = [lambda rng: {"a": 1.0}, LIKELIHOODS[kind]]
    with pytest.raises(TypeError, match=r"argument 'v'; earlier steps returned \['a'\]"):
        SequentialSimulator(steps).sample(random.key(0), 2)


def test_steps_of_steps_see_all_values():
    inner = SequentialSimulator([lambda a, rng: {"b": a + 1}, lambda b, rng: {"c": b + 1}])
    draws = SequentialSimulator([lambda rng: {"a": 1}, inner]).sample(random.key(0), 2)
    assert {n: int(x[0]) for n, x in draws.items()} == {"a": 1, "b": 2, "c": 3}


def line(x, y=None):
    slope = numpyro.sample("slope", dist.Normal(0, 1))
    mean = numpyro.deterministic("mean", slope * x)
    numpyro.sample("y", dist.Normal(mean, 0.1).to_event(1), obs=y)


MODELS = {
    "positional": lambda: ModelSimulator(line, np.zeros(4), np.zeros(4)),
    "keyword": lambda: ModelSimulator(line, x=np.zeros(4), observed=("y",)),
    "handler": lambda: ModelSimulator(handlers.condition(line, {"y": np.zeros(4)}), x=np.ones(4)),
}


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("source", ["rng", "rng_key"])
def test_models_take_earlier_values(kind, source):
    designs = {
        "rng": lambda rng: {"x": rng.normal(size=4)},
        "rng_key": lambda rng_key: {"x": random.normal(rng_key, (4,))},
    }
    summary = LambdaSimulator(lambda y, rng_key: {"mean_y": y.mean()})
    simulator = SequentialSimulator([designs[source], MODELS[kind](), summary])
    draws = simulator.sample(random.key(0), 50)
    np.testing.assert_allclose(draws["mean"], draws["slope"][:, None] * draws["x"], rtol=1e-5)
    np.testing.assert_allclose(draws["mean_y"], draws["y"].mean(1), rtol=1e-4, atol=1e-6)
    # The standard deviation of 200 residuals has a standard error of .1 / sqrt(400) = .005.
    assert abs((draws["y"] - draws["mean"]).std() - 0.1) < 0.025
    assert len(np.unique(draws["x"])) == 200
    assert isinstance(simulator, TraceableSimulator) == (source == "rng_key")


def test_models_draw_for_later_functions():
    model = ModelSimulator(line, np.ones(4), np.zeros(4))
    double = LambdaSimulator(lambda slope, rng: {"double": 2 * slope})
    draws = SequentialSimulator([model, double]).sample(random.key(0), 5)
    np.testing.assert_allclose(draws["double"], 2 * draws["slope"])


def test_context_is_drawn_in_one_place():
    model = ModelSimulator(
        line, observed=("y",), context=lambda rng_key: {"x": random.normal(rng_key, (4,))}
    )
    alone = SequentialSimulator([lambda rng_key: {"z": 0.0}, model]).sample(random.key(0), 3)
    np.testing.assert_allclose(alone["mean"], alone["slope"][:, None] * alone["x"], rtol=1e-5)
    with pytest.raises(ValueError, match=r"draws \['x'\] as its context.* take \['x'\]"):
        SequentialSimulator([lambda rng_key: {"x": jnp.ones(4)}, model]).sample(random.key(0), 3)


class Coin(Simulator):
    """One of the user's own."""

    def sample(self, rng_key, batch_shape):
        return {"coin": np.asarray(random.bernoulli(rng_key, shape=batch_shape))}


def test_other_simulators_are_steps():
    steps = [Coin(), lambda coin, rng: {"side": bool(coin)}]
    draws = SequentialSimulator(steps).sample(random.key(0), (3, 4))
    assert draws["coin"].shape == (3, 4) and draws["coin"].dtype == bool
    np.testing.assert_array_equal(draws["coin"], draws["side"])


def test_make_simulator_keeps_simulators():
    coin = Coin()
    assert make_simulator(coin) is coin


NORMAL = [
    lambda rng_key: {"mu": random.normal(rng_key)},
    lambda mu, rng_key: {"x": mu + random.normal(rng_key, (3,))},
]
NAMED = {
    "mu": lambda rng_key: random.normal(rng_key),
    "x": lambda mu, rng_key: mu + random.normal(rng_key, (3,)),
}


@pytest.mark.parametrize(
    "obj", [NORMAL, tuple(NORMAL), NAMED, dict(zip("ab", NORMAL, strict=True))]
)
def test_make_simulator_of_lists_and_mappings(obj):
    simulator = make_simulator(obj)
    assert isinstance(simulator, TraceableSimulator)
    draws = simulator.sample(random.key(0), 10_000)
    assert {n: x.shape for n, x in draws.items()} == {"mu": (10_000,), "x": (10_000, 3)}
    covariance = np.cov(np.column_stack([draws["mu"], draws["x"]]).T)
    # Standard errors are at most sqrt(2) * 2 / 100 = .028.
    assert abs(covariance - np.diag([0, 1, 1, 1]) - 1).max() < 0.14


def test_mapping_names_what_has_no_name():
    steps = {
        "theta": lambda rng: rng.normal(size=2),
        "scale": LambdaSimulator(lambda theta, rng: 2),
        "rest": lambda theta, scale, rng: {"x": theta * scale, "n": 1},
        "coin": Coin(),
    }
    draws = make_simulator(steps).sample(random.key(0), 5)
    assert [*draws] == ["theta", "scale", "x", "n", "coin"]
    np.testing.assert_allclose(draws["x"], 2 * draws["theta"])


def test_make_simulator_of_functions():
    assert isinstance(make_simulator(NORMAL[0]), TraceableSimulator)


@pytest.mark.parametrize("obj", [3, "text", [3], {"x": 3}, np.zeros(3)])
def test_make_simulator_refuses_other_things(obj):
    with pytest.raises(TypeError, match="Expected a simulator, a function, a list"):
        make_simulator(obj)


@pytest.mark.parametrize("obj", [[], {}])
def test_at_least_one_step(obj):
    with pytest.raises(ValueError, match="at least one"):
        make_simulator(obj)


def test_sequences_run_in_loops_and_compile_once(compilations):
    simulator = make_simulator(NORMAL)
    jax.block_until_ready(simulator.sample(random.key(0), 6))
    compilations.clear()
    jax.block_until_ready(simulator.sample(random.key(1), 6))
    assert not compilations
    keys = random.split(random.key(2), 6)
    _, draws = jax.lax.scan(lambda carry, key: (carry, simulator.simulate(key)), None, keys)
    np.testing.assert_allclose(draws["x"], simulator.sample(random.key(2), 6)["x"], rtol=1e-6)
