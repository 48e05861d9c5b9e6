# SPDX-License-Identifier: Apache-2.0
"""Functions as simulators, on the device and on the host: one law for all, and clear refusals."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import random

from numpyro_amortized.datasets import OnlineDataset
from numpyro_amortized.simulators.base import Simulator, TraceableSimulator
from numpyro_amortized.simulators.functions import LambdaSimulator


def on_device(rng_key):
    a, b = random.split(rng_key)
    return {"scalar": random.normal(a), "vector": random.normal(b, (3,)), "constant": 2}


def on_host(rng):
    return {"scalar": rng.normal(), "vector": rng.normal(size=3), "constant": 2}


def batched_on_device(batch_shape, rng_key):
    a, b = random.split(rng_key)
    scalar, vector = random.normal(a, batch_shape), random.normal(b, (*batch_shape, 3))
    return {"scalar": scalar, "vector": vector, "constant": 2}


def batched_on_host(batch_shape, rng):
    scalar, vector = rng.normal(size=batch_shape), rng.normal(size=(*batch_shape, 3))
    return {"scalar": scalar, "vector": vector, "constant": 2}


SIMULATORS = {
    "device": LambdaSimulator(on_device),
    "host": LambdaSimulator(on_host),
    "batched device": LambdaSimulator(batched_on_device, is_batched=True),
    "batched host": LambdaSimulator(batched_on_host, is_batched=True),
}
every_kind = pytest.mark.parametrize("simulator", SIMULATORS.values(), ids=[*SIMULATORS])


@every_kind
@pytest.mark.parametrize("shape", [(), 7, (2, 3)])
def test_outputs_are_stacked(simulator: Simulator, shape):
    draws = simulator.sample(random.key(0), shape)
    batch = shape if isinstance(shape, tuple) else (shape,)
    shapes = {name: x.shape for name, x in draws.items()}
    assert shapes == {"scalar": batch, "vector": (*batch, 3), "constant": batch}
    assert all(isinstance(x, jax.Array) for x in draws.values())
    assert jnp.issubdtype(draws["constant"].dtype, jnp.integer) and (draws["constant"] == 2).all()


@every_kind
def test_draws_follow_from_the_key(simulator: Simulator):
    first, again = (simulator.sample(random.key(1), 5) for _ in range(2))
    raw = simulator.sample(random.key_data(random.key(1)), 5)
    other = simulator.sample(random.key(2), 5)
    for name in ("scalar", "vector"):
        np.testing.assert_array_equal(first[name], again[name])
        np.testing.assert_array_equal(first[name], raw[name])
        assert not np.isin(first[name], other[name]).any()


@every_kind
def test_draws_are_independent_normals(simulator: Simulator):
    x = np.asarray(simulator.sample(random.key(3), 10_000)["vector"])
    # Standard errors: of a mean .01, of an sd .007, of a correlation .01; of each about ten, so
    # that five of them are exceeded by chance in one of 50,000 runs.
    assert abs(x.mean(0)).max() < 0.05
    assert abs(x.std(0) - 1).max() < 0.036
    neighbours = np.corrcoef(np.column_stack([x[:-1], x[1:]]).T)
    assert abs(neighbours - np.eye(6)).max() < 0.05


def test_host_draw_does_not_depend_on_the_batch():
    few, many = (SIMULATORS["host"].sample(random.key(0), n)["vector"] for n in (3, 50))
    np.testing.assert_array_equal(few, many[:3])


def test_generators_spawn():
    simulator = LambdaSimulator(lambda rng: {"x": [r.normal() for r in (*rng.spawn(2), rng)]})
    draws = np.asarray(simulator.sample(random.key(0), 50)["x"])
    assert len(np.unique(draws)) == draws.size
    np.testing.assert_array_equal(draws, simulator.sample(random.key(0), 50)["x"])


@pytest.mark.parametrize("kind", ["device", "batched device"])
def test_jax_functions_run_in_training_loops(kind):
    simulator = SIMULATORS[kind]
    assert isinstance(simulator, TraceableSimulator)
    batch = jax.jit(partial(OnlineDataset(simulator).batch, batch_size=4))(random.key(0), 0)
    keys = random.split(random.fold_in(random.key(0), 0), 4)
    expected = [simulator.simulate(key)["vector"] for key in keys]
    np.testing.assert_allclose(batch["vector"], jnp.stack(expected), rtol=1e-6)


def test_host_functions_are_not_traceable():
    assert not isinstance(SIMULATORS["host"], TraceableSimulator)


def test_batched_function_is_called_once_with_the_batch_shape():
    shapes = []

    def function(batch_shape, *, rng):
        shapes.append(batch_shape)
        return {"x": rng.normal(size=batch_shape)}

    LambdaSimulator(function, is_batched=True).sample(random.key(0), (4, 5))
    assert shapes == [(4, 5)]


def test_unseeded_functions_run_with_a_warning():
    simulator = LambdaSimulator(lambda: {"x": 1.0})
    with pytest.warns(UserWarning, match="cannot be seeded"):
        assert simulator.sample(random.key(0), 3)["x"].shape == (3,)
    with pytest.raises(ValueError, match="cannot be seeded: copies of it on 2 workers"):
        simulator.sample(random.key(0), 3, workers=2)


def test_outputs_may_be_reused_and_changed_later():
    buffer = np.zeros(2)

    def function(rng):
        buffer[:] = rng.normal(size=2)
        return {"x": buffer}

    draws = LambdaSimulator(function).sample(random.key(0), 20)["x"]
    assert len(np.unique(draws)) == 40


@pytest.mark.parametrize("source", ["rng", "rng_key"])
@pytest.mark.parametrize(
    ("output", "message"),
    [
        (np.zeros(3), "expected a dictionary .* got ndarray"),
        (None, "expected a dictionary .* got NoneType"),
        ({1: 2.0}, r"expected a dictionary .* got keys \[1\]"),
        ({"x": "text"}, "Entry 'x'.* got str"),
        ({"x": None}, "Entry 'x'.* got NoneType"),
        ({"x": [[1.0], [2.0, 3.0]]}, "Entry 'x'.* Pad ragged lists"),
        ({"x": {"y": 1.0}}, "Entry 'x'.* got dict"),
    ],
)
def test_outputs_are_checked(source, output, message):
    functions = {"rng": lambda rng: output, "rng_key": lambda rng_key: output}
    with pytest.raises(TypeError, match=message):
        LambdaSimulator(functions[source]).sample(random.key(0), 2)


def test_ragged_outputs_are_named():
    simulator = LambdaSimulator(lambda rng: {"n": 1, "x": np.zeros(rng.integers(2, 6))})
    with pytest.raises(ValueError, match=r"Entry 'x': shape \(\d,\) in simulation 0.* pad"):
        simulator.sample(random.key(0), 20)


def test_missing_entries_are_named():
    simulator = LambdaSimulator(lambda rng: {"x": 1} if rng.random() < 0.5 else {"x": 1, "y": 2})
    with pytest.raises(ValueError, match=r"Simulation \d+: expected entries .*'x'.*fill value"):
        simulator.sample(random.key(0), 20)


@pytest.mark.parametrize("source", ["rng", "rng_key"])
def test_outputs_of_batched_functions_have_the_batch_shape(source):
    functions = {
        "rng": lambda n, rng: {"x": np.ones(3)},
        "rng_key": lambda n, rng_key: {"x": np.ones(3)},
    }
    with pytest.raises(ValueError, match=r"Entry 'x' .* expected the batch shape .*\(3,\)"):
        LambdaSimulator(functions[source], is_batched=True).sample(random.key(0), 4)


def test_integers_that_do_not_fit_are_refused():
    if jax.config.read("jax_enable_x64"):
        pytest.skip("they fit")
    simulator = LambdaSimulator(lambda rng: {"x": 2**40})
    with pytest.raises(OverflowError, match=r"Entry 'x': .* Return floats"):
        simulator.sample(random.key(0), 2)


def test_untraceable_functions_are_explained():
    simulator = LambdaSimulator(lambda rng_key: {"x": jnp.zeros(random.poisson(rng_key, 4))})
    with pytest.raises(TypeError, match=r"JAX cannot trace it.* pad to a fixed length"):
        simulator.sample(random.key(0), 2)


@pytest.mark.parametrize(
    ("function", "is_batched", "message"),
    [
        (lambda rng, rng_key: {}, False, "got both"),
        (lambda rng, x, /: {}, False, "positional-only"),
        (max, False, "Expected a function with a signature"),
        (3, False, "Expected a function with a signature"),
        (lambda rng: {}, True, "the first argument is the batch shape, got 'rng'"),
        (lambda: {}, True, "the first argument is the batch shape, got no argument"),
    ],
)
def test_signatures_are_checked(function, is_batched, message):
    with pytest.raises(TypeError, match=message):
        LambdaSimulator(function, is_batched=is_batched)


@pytest.mark.parametrize("source", ["rng", "rng_key"])
def test_arguments_that_nothing_fills_are_named(source):
    functions = {"rng": lambda theta, rng: {}, "rng_key": lambda theta, rng_key: {}}
    with pytest.raises(TypeError, match="nothing to pass as argument 'theta'"):
        LambdaSimulator(functions[source]).sample(random.key(0), 2)
