# SPDX-License-Identifier: Apache-2.0
"""Rejection sampling: the accepted draws of the rounds, enough of them, or a reasoned error."""

import jax.numpy as jnp
import numpy as np
import pytest
from jax import random
from scipy import stats

from numpyro_amortized.simulators.functions import LambdaSimulator

DEVICE = LambdaSimulator(
    lambda rng_key: {"x": random.normal(rng_key), "y": random.normal(rng_key, (2,)), "n": 1}
)
HOST = LambdaSimulator(lambda rng: {"x": rng.normal(), "y": rng.normal(size=2), "n": 1})
both = pytest.mark.parametrize("simulator", [DEVICE, HOST], ids=["device", "host"])


def large(draws):
    return draws["x"] > 1


def large_in_numpy(draws):
    return np.asarray(draws["x"]) > 1


@both
@pytest.mark.parametrize("predicate", [large, large_in_numpy])
def test_accepted_draws_are_those_of_the_rounds(simulator, predicate):
    rounds = [simulator.sample(random.fold_in(random.key(0), i), 50) for i in range(20)]
    kept = [{n: np.asarray(x)[large_in_numpy(d)] for n, x in d.items()} for d in rounds]
    num_rounds = 1 + int(np.argmax(np.cumsum([len(part["x"]) for part in kept]) >= 30))
    draws = simulator.rejection_sample(random.key(0), 30, predicate, sample_size=50)
    for name, values in draws.items():
        expected = np.concatenate([part[name] for part in kept[:num_rounds]])
        np.testing.assert_array_equal(values, expected)
        assert values.dtype == rounds[0][name].dtype
    exact = simulator.rejection_sample(random.key(0), 30, predicate, sample_size=50, exact=True)
    for name, values in exact.items():
        np.testing.assert_array_equal(values, np.asarray(draws[name])[:30])


def test_accepted_draws_are_distributed_as_truncated():
    x = DEVICE.rejection_sample(random.key(1), 20_000, large, exact=True)["x"]
    # The p-value of an exact sampler is below 1e-4 in one of 10,000 runs.
    assert stats.kstest(x, stats.truncnorm(1, np.inf).cdf).pvalue > 1e-4


@both
@pytest.mark.parametrize("shape", [(), (6,), (3, 4)])
def test_shapes(simulator, shape):
    exact = simulator.rejection_sample(random.key(0), shape, large, sample_size=40, exact=True)
    assert {n: x.shape for n, x in exact.items()} == {"x": shape, "y": (*shape, 2), "n": shape}
    more = simulator.rejection_sample(random.key(0), shape, large, sample_size=40)
    assert more["x"].shape[1:] == shape[1:] and more["x"].shape >= shape
    assert (more["x"] > 1).all()


def test_at_least_returns_all_of_the_last_round():
    draws = DEVICE.rejection_sample(random.key(0), 5, lambda d: d["x"] < 9, sample_size=64)
    assert draws["x"].shape == (64,)


def test_rounds_compile_once(compilations):
    DEVICE.rejection_sample(random.key(0), 200, large, sample_size=20, exact=True)
    compilations.clear()
    DEVICE.rejection_sample(random.key(1), 200, large, sample_size=20, exact=True)
    assert not compilations


@both
def test_too_little_acceptance_is_an_error(simulator):
    def very_large(draws):
        return draws["x"] > 99

    with pytest.raises(RuntimeError, match=r"'very_large' accepted 0 of 60 simulations, 0.00%"):
        simulator.rejection_sample(random.key(0), 5, very_large, sample_size=20, max_rounds=3)


def test_the_rate_of_acceptance_is_stated():
    with pytest.raises(RuntimeError, match=r"accepted \d+ of 2000 simulations, 1\d.\d\d%, in 2"):
        DEVICE.rejection_sample(random.key(0), 1000, large, max_rounds=2)


@pytest.mark.parametrize(
    ("predicate", "error", "message"),
    [
        (lambda d: [True] * 4, TypeError, "expected 4 booleans.* got list"),
        (lambda d: True, TypeError, "expected 4 booleans.* got bool"),
        (lambda d: d["n"], TypeError, "expected 4 booleans.* got int"),
        (lambda d: d["y"] > 0, ValueError, r"expected 4 booleans.* got shape \(4, 2\)"),
        (lambda d: jnp.any(d["x"] > 0), ValueError, r"expected 4 booleans.* got shape \(\)"),
    ],
)
def test_predicates_are_checked(predicate, error, message):
    with pytest.raises(error, match=rf"Predicate '<lambda>': {message}"):
        DEVICE.rejection_sample(random.key(0), 4, predicate)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"sample_size": 0}, ValueError),
        ({"sample_size": 2.5}, TypeError),
        ({"max_rounds": 0}, ValueError),
    ],
)
def test_sizes_are_checked(options, error):
    with pytest.raises(error, match=next(iter(options))):
        DEVICE.rejection_sample(random.key(0), 4, large, **options)
