# SPDX-License-Identifier: Apache-2.0
"""Supports to real numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import random
from numpyro.distributions import biject_to, constraints

from numpyro_amortized import Adapter
from tests.adapters.laws import check_laws

LOWER = np.array([-1.0, 0.0, 2.0])
BOUNDS = [
    {"lower": 0},
    {"lower": 3.0},
    {"upper": -2.0},
    {"lower": -1.0, "upper": 4.0},
    {"lower": LOWER},
    {"lower": LOWER, "upper": np.add(LOWER, [1.0, 2.0, 0.5])},
]
CONSTRAINTS = {
    "positive": constraints.positive,
    "nonnegative": constraints.nonnegative,
    "unit_interval": constraints.unit_interval,
    "interval": constraints.interval(-2.0, 5.0),
    "less_than": constraints.less_than(1.5),
    "softplus_positive": constraints.softplus_positive,
    "real": constraints.real,
    "real_vector": constraints.real_vector,
    "independent": constraints.independent(constraints.positive, 1),
    "simplex": constraints.simplex,
    "ordered_vector": constraints.ordered_vector,
    "positive_ordered_vector": constraints.positive_ordered_vector,
    "l1_ball": constraints.l1_ball,
    "positive_definite": constraints.positive_definite,
    "lower_cholesky": constraints.lower_cholesky,
    "softplus_lower_cholesky": constraints.softplus_lower_cholesky,
    "corr_cholesky": constraints.corr_cholesky,
    "corr_matrix": constraints.corr_matrix,
}
MATRICES = {
    "positive_definite": 0,
    "lower_cholesky": 0,
    "softplus_lower_cholesky": 0,
    "corr_cholesky": -1,
    "corr_matrix": -1,
}  # the last diagonal with free entries


DTYPES = pytest.mark.parametrize(
    "dtype", ["float32", pytest.param("float64", marks=pytest.mark.verify)]
)


def draws_of(constraint, shape, dtype):
    """Values well inside the support."""
    transform = biject_to(constraint)
    return transform(random.normal(random.key(1), (5, *transform.inverse_shape(shape)), dtype))


def coordinates_of(name):
    def coordinates(values):
        x = values["x"]
        if name == "simplex":
            return x[:-1]
        if name in MATRICES:
            return x[jnp.tril_indices(x.shape[-1], MATRICES[name])]
        return jnp.ravel(x)

    return coordinates


@DTYPES
@pytest.mark.parametrize("bounds", BOUNDS, ids=str)
def test_laws_of_bounds(bounds, dtype):
    with jax.enable_x64(dtype == "float64"):
        unit = random.uniform(random.key(0), (5, 3), dtype, 0.1, 0.9)
        lower = bounds.get("lower", bounds.get("upper", 0.0) - 2.0)
        upper = bounds.get("upper", lower + 2.0)
        x = (lower + (upper - lower) * unit).astype(dtype)
        adapter = Adapter().constrain("x", **bounds)
        check_laws(adapter, {"x": x, "other": unit}, dtype=dtype)


@DTYPES
@pytest.mark.parametrize("name", CONSTRAINTS)
def test_laws_of_constraints(name, dtype):
    with jax.enable_x64(dtype == "float64"):
        constraint = CONSTRAINTS[name]
        draws = {"x": draws_of(constraint, (3, 3) if name in MATRICES else (4,), dtype)}
        adapter = Adapter().constrain("x", constraint=constraint)
        check_laws(adapter, draws, dtype=dtype, coordinates=coordinates_of(name))


def test_zero_sum_is_an_isometry():
    constraint = constraints.zero_sum(1)
    x = draws_of(constraint, (4,), jnp.float32)
    adapter = Adapter().constrain("x", constraint=constraint).bind({"x": x})
    z = adapter({"x": x})["x"]
    assert z.shape == (5, 3)
    np.testing.assert_allclose(adapter.inverse({"x": z})["x"], x, atol=1e-5)
    np.testing.assert_allclose((z**2).sum(-1), (x**2).sum(-1), rtol=1e-5)
    np.testing.assert_array_equal(adapter.log_det_jac({"x": x}), np.zeros(5))


@DTYPES
@pytest.mark.parametrize("bounds", BOUNDS, ids=str)
def test_values_on_a_bound_are_finite_and_gradients_too(bounds, dtype):
    with jax.enable_x64(dtype == "float64"):
        adapter = Adapter().constrain("x", **bounds)
        for bound in bounds.values():
            x = jnp.broadcast_to(jnp.asarray(bound, dtype), (3,))
            inwards = jnp.where(bound == bounds.get("lower"), jnp.inf, -jnp.inf)
            near = jnp.nextafter(x, inwards.astype(dtype))
            assert jnp.isfinite(adapter({"x": near})["x"]).all()
            z, slope = jax.value_and_grad(lambda x: adapter({"x": x})["x"].sum())(x)
            assert jnp.isfinite(z) and jnp.isfinite(slope).all()
            assert jnp.isfinite(adapter.log_det_jac({"x": x}))


@pytest.mark.parametrize("bounds", BOUNDS, ids=str)
def test_every_number_comes_back_into_the_support(bounds):
    z = jnp.repeat(jnp.concatenate([jnp.linspace(-80, 80, 161), jnp.array([-1e4, 80.0])]), 3)
    adapter = Adapter().constrain("x", **bounds)
    x = jax.vmap(lambda z: adapter.inverse({"x": z})["x"])(z.reshape(-1, 3))
    assert jnp.isfinite(x).all()
    assert (x >= bounds.get("lower", -np.inf)).all() and (x <= bounds.get("upper", np.inf)).all()


def test_values_outside_of_the_support_are_not_hidden():
    adapter = Adapter().constrain("x", lower=0)
    assert jnp.isnan(adapter.log_det_jac({"x": jnp.asarray(-1.0)}))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({}, "expected `lower`, `upper` or both"),
        ({"lower": 0, "constraint": constraints.positive}, "or else `constraint`"),
        ({"lower": 1, "upper": 1}, "`lower` below `upper`"),
        ({"constraint": constraints.sphere}, "no bijection"),
        ({"constraint": constraints.nonnegative_integer}, "no bijection"),
    ],
)
def test_bad_supports(arguments, message):
    with pytest.raises(ValueError, match=message):
        Adapter().constrain("x", **arguments)
