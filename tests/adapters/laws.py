# SPDX-License-Identifier: Apache-2.0
"""What holds of every bijection."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

TOLERANCES = {"float32": 5e-4, "float64": 1e-9}


def all_numbers(values):
    """Coordinates of values whose numbers are all independent."""
    return ravel_pytree(values)[0]


def check_laws(adapter, draws, *, dtype, coordinates=all_numbers):
    """Undone exactly; the log-determinant that of autodiff; the same under jit, vmap and batches.

    :param adapter: one of bijections alone.
    :param draws: values with a leading axis, of type ``dtype``.
    :param coordinates: from the values of a simulation to independent numbers that determine them.
    """
    tolerance = TOLERANCES[dtype]
    adapter = adapter.bind(draws)

    def laws(values):
        inputs = adapter.forward(values)
        flat, unravel = ravel_pytree(inputs)
        jacobian = jax.jacfwd(lambda z: coordinates(adapter.inverse(unravel(z))))(flat)
        return (inputs, adapter.inverse(inputs), adapter.log_det_jac(values)), jacobian

    def batches(values):
        inputs = adapter.forward(values)
        return inputs, adapter.inverse(inputs), adapter.log_det_jac(values)

    mapped, jacobians, whole = jax.jit(lambda d: (*jax.vmap(laws)(d), batches(d)))(draws)
    _, back, log_det = whole
    assert_same(back, draws, tolerance)
    assert log_det.dtype == dtype
    expected = -np.linalg.slogdet(np.asarray(jacobians, np.float64))[1]
    np.testing.assert_allclose(log_det, expected, rtol=5 * tolerance, atol=5 * tolerance)
    for one, other in zip(mapped, whole, strict=True):
        assert_same(one, other, tolerance)


def assert_same(got, expected, tolerance):
    """Equal names, shapes, types and, but for rounding, values."""
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert a.shape == b.shape and a.dtype == jnp.asarray(b).dtype
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)
