# SPDX-License-Identifier: Apache-2.0
"""The discrepancy of summaries to a standard normal."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import random

from numpyro_amortized.networks.summary_regularizer import mmd_to_normal

SCALES = (0.25, 1.0, 4.0)


def kernel(x, y):
    """Mean of the Gaussian kernels, shape ``(len(x), len(y))``."""
    squared = ((x[:, None] - y) ** 2).sum(-1)
    size = x.shape[-1]
    return np.mean([np.exp(-squared / (4 * size * scale**2)) for scale in SCALES], axis=0)


def off_diagonal_mean(matrix):
    num = len(matrix)
    return (matrix.sum() - np.trace(matrix)) / (num * (num - 1))


@pytest.mark.parametrize("size", [1, 5])
def test_agrees_with_monte_carlo(size):
    rng = np.random.default_rng(0)
    x = 0.5 + 1.5 * rng.standard_normal((30, size))
    y, z = rng.standard_normal((2, 3000, size))
    expected = off_diagonal_mean(kernel(x, x)) - 2 * kernel(x, y).mean() + kernel(y, z).mean()
    mmd = jax.jit(partial(mmd_to_normal, scales=SCALES))
    # 3000 draws leave each mean an error of about .3 / sqrt(3000) = .005, and they are three
    assert abs(float(mmd(jnp.asarray(x))) - expected) < 0.02


def test_unbiased_and_consistent():
    x = random.normal(random.key(0), (2000, 20, 3))
    mmd = jax.jit(mmd_to_normal)
    discrepancies = mmd(x)
    error = discrepancies.std() / np.sqrt(2000)
    assert abs(discrepancies.mean()) < 4 * error
    assert (discrepancies < 0).any()
    assert mmd(x + 1).mean() > 20 * error
    assert mmd(2 * x).mean() > 20 * error


def test_batch_axes():
    x = random.normal(random.key(1), (2, 3, 10, 4))
    one = jax.jit(mmd_to_normal)
    expected = [[one(row) for row in rows] for rows in x]
    np.testing.assert_allclose(one(x), expected, rtol=1e-5, atol=1e-6)


def test_descent_makes_summaries_normal():
    x = 2 + 0.3 * random.normal(random.key(2), (100, 2))
    slope = jax.jit(jax.value_and_grad(mmd_to_normal))
    start, _ = slope(x)
    for _ in range(500):
        value, gradient = slope(x)
        x = x - 100 * gradient
    assert value < 0.05 * start
    np.testing.assert_allclose(x.mean(0), 0, atol=0.2)
    np.testing.assert_allclose(x.std(0), 1, atol=0.25)


@pytest.mark.verify
def test_equal_summaries_have_finite_gradients():
    assert jnp.isfinite(jax.grad(mmd_to_normal)(jnp.ones((5, 3)))).all()


def test_one_summary_is_refused():
    with pytest.raises(ValueError, match="two or more simulations, got 1"):
        mmd_to_normal(jnp.ones((1, 3)))
