# SPDX-License-Identifier: Apache-2.0
"""The contrastive loss of ratios."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import random

from numpyro_amortized.approximators.ratio import _with_negatives, contrastive_loss


def test_negatives_are_those_of_other_simulations():
    variables = jnp.arange(7.0)[:, None]
    rows = np.asarray(jax.jit(_with_negatives, static_argnums=2)(random.key(0), variables, 5))
    assert rows.shape == (7, 6, 1)
    np.testing.assert_array_equal(rows[:, 0], variables)
    assert all(len(set(row)) == 6 for row in rows[..., 0])


@pytest.mark.parametrize("gamma, K", [(1.0, 5), (3.0, 1)])
def test_loss_is_least_at_the_normalized_ratio(gamma, K):
    """Exactly, by enumerating a binary parameter and a binary datum."""
    joint = np.array([[0.4, 0.1], [0.2, 0.3]])  # of theta, x
    prior, evidence = joint.sum(1), joint.sum(0)
    truth = jnp.log(joint / np.outer(prior, evidence))
    thetas = np.stack(np.meshgrid(*[[0, 1]] * (K + 1), indexing="ij"), -1).reshape(-1, K + 1)

    def expected_loss(log_ratio):
        total = 0.0
        for x in (0, 1):
            losses = contrastive_loss(log_ratio[thetas, x], gamma)
            weights = joint[thetas[:, 0], x] * prior[thetas[:, 1:]].prod(1)
            total += jnp.sum(weights * losses)
        return total

    slope, hessian = jax.jit(lambda r: (jax.grad(expected_loss)(r), jax.hessian(expected_loss)(r)))(
        truth
    )
    np.testing.assert_allclose(slope, 0, atol=1e-6)
    hessian = hessian.reshape(4, 4)
    # also the constant, which contrasts alone would leave free
    assert np.linalg.eigvalsh(hessian).min() > 1e-3
