# SPDX-License-Identifier: Apache-2.0
"""Laws of the monotone maps of one variable."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import random

from numpyro_amortized.networks import Affine, Spline

TRANSFORMS = [
    Affine(),
    Spline(),
    pytest.param(Spline(bins=2, bound=3.0), marks=pytest.mark.verify),
    pytest.param(Spline(bins=32, bound=1.0), marks=pytest.mark.verify),
]


# Of one program each, where most of the time goes into compiling.
forward = jax.jit(lambda transform, params, x: transform.forward(params, x), static_argnums=0)
inverse = jax.jit(lambda transform, params, x: transform.inverse(params, x), static_argnums=0)


@pytest.fixture(params=TRANSFORMS, ids=str)
def transform(request):
    return request.param


@pytest.fixture
def params(transform):
    return random.normal(random.key(0), (500, transform.num_params))


@pytest.fixture
def x():
    # within the bound, around it and far outside
    return random.normal(random.key(1), (500,)) * 10.0 ** random.uniform(
        random.key(2), (500,), minval=-2, maxval=3
    )


def test_inverse_undoes_forward(transform, params, x):
    y, log_slope = forward(transform, params, x)
    back, log_inverse_slope = inverse(transform, params, y)
    # y is rounded to some 1e-7 of the interval of length 10; where the slope is small, x moves by
    # that over the slope
    rounding = 1e-5 * (1 + np.abs(y) * np.exp(-log_slope) + np.abs(x))
    assert (np.abs(back - x) <= rounding + 1e-5 * np.exp(-log_slope)).all()
    assert np.quantile(np.abs(back - x) / (1 + np.abs(x)), 0.9) < 1e-5
    # inside a bin the slope moves with that error
    assert np.quantile(np.abs(log_slope + log_inverse_slope), 0.95) < 1e-3


def test_forward_undoes_inverse(transform, params, x):
    y, _ = forward(transform, params, inverse(transform, params, x)[0])
    np.testing.assert_allclose(y, x, rtol=1e-3, atol=1e-3)


def test_slope_is_that_of_autodiff(transform, params, x):
    slope = jax.grad(lambda p, x: transform.forward(p, x)[0], argnums=1)
    derivative = jax.jit(jax.vmap(slope))(params, x)
    _, log_slope = forward(transform, params, x)
    assert (derivative > 0).all()
    np.testing.assert_allclose(log_slope, jnp.log(derivative), rtol=1e-3, atol=1e-3)


def test_monotone_and_continuous(transform):
    params = random.normal(random.key(3), (transform.num_params,))
    x = jnp.linspace(-8, 8, 20_001)
    y, log_slope = forward(transform, params, x)
    steps = jnp.diff(y)
    assert (steps >= 0).all()
    # no jump at the knots nor at the bound: a step is at most the steepest slope times the spacing
    assert steps.max() <= 1.05 * jnp.exp(log_slope.max()) * (x[1] - x[0]) + 1e-5


def test_zero_parameters_are_the_identity(transform, x):
    y, log_slope = forward(transform, jnp.zeros((500, transform.num_params)), x)
    np.testing.assert_allclose(y, x, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(log_slope, 0, atol=1e-4)


def test_spline_is_linear_beyond_the_bound():
    transform = Spline(bins=4, bound=2.0)
    params = random.normal(random.key(0), (transform.num_params,)).at[:2].set(0)
    x = jnp.array([-1e6, -2.5, -2.0, 2.0, 2.5, 1e6])
    for y, log_slope in (forward(transform, params, x), inverse(transform, params, x)):
        np.testing.assert_allclose(y, x, rtol=1e-6)
        np.testing.assert_allclose(log_slope[jnp.abs(x) > 2], 0)


def test_no_parameter_value_overflows(transform):
    params = 10.0 ** jnp.arange(8).repeat(25)[:, None] * random.normal(
        random.key(4), (200, transform.num_params)
    )
    x = random.normal(random.key(5), (200,))
    for function in (transform.forward, transform.inverse):
        values, pullback = jax.vjp(jax.jit(function), params, x)
        gradients = pullback(tuple(map(jnp.ones_like, values)))
        assert all(bool(jnp.isfinite(v).all()) for v in (*values, *gradients))


def test_double_precision_round_trip(transform):
    with jax.enable_x64(True):
        params = random.normal(random.key(0), (500, transform.num_params), jnp.float64)
        x = 3 * random.normal(random.key(1), (500,), jnp.float64)
        y, _ = forward(transform, params, x)
        assert y.dtype == jnp.float64
        np.testing.assert_allclose(inverse(transform, params, y)[0], x, rtol=1e-10, atol=1e-10)
