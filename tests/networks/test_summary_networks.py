# SPDX-License-Identifier: Apache-2.0
"""Laws of summary networks of sets, and of perceptrons."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import random

from numpyro_amortized.networks import MLP, DeepSet


@pytest.fixture
def network():
    return DeepSet(3, 5, widths=(16,), embedding_size=8, rngs=nnx.Rngs(0))


@pytest.fixture
def sets():
    return random.normal(random.key(0), (4, 6, 3))


def test_shape_and_batch_axes(network, sets):
    expected = jnp.stack([network(x) for x in sets])
    assert network.summary_size == 5 and expected.shape == (4, 5)
    np.testing.assert_allclose(network(sets), expected, rtol=1e-4, atol=1e-5)
    assert network(sets.reshape(2, 2, 6, 3)).shape == (2, 2, 5)


def test_order_of_members_does_not_matter(network, sets):
    shuffled = random.permutation(random.key(1), sets, axis=1)
    np.testing.assert_allclose(network(shuffled), network(sets), rtol=1e-4, atol=1e-5)
    mixed = random.permutation(random.key(1), sets, axis=2)
    assert jnp.abs(network(mixed) - network(sets)).max() > 1e-3


@pytest.mark.parametrize("padding", [0.0, 1e6, np.nan, np.inf])
def test_masked_members_change_nothing(network, sets, padding):
    padded = jnp.concatenate([sets, jnp.full((4, 3, 3), padding)], axis=1)
    mask = jnp.arange(9) < 6
    np.testing.assert_allclose(
        network(padded, jnp.broadcast_to(mask, (4, 9))), network(sets), rtol=1e-4, atol=1e-5
    )


def test_masked_members_have_no_gradient(network, sets):
    mask = jnp.arange(6) < 4
    gradient = jax.grad(lambda x: network(x, jnp.broadcast_to(mask, (4, 6))).sum())(sets)
    assert (gradient[:, 4:] == 0).all() and (gradient[:, :4] != 0).any()


def test_size_of_the_set_is_seen(network):
    x = jnp.ones((2, 3))
    assert jnp.abs(network(x) - network(jnp.ones((20, 3)))).max() > 1e-3
    nothing = network(x, jnp.zeros(2, bool))
    assert jnp.isfinite(nothing).all()


@pytest.mark.parametrize(
    "sizes", [{"size": 0}, {"size": 2, "widths": ()}, {"size": 0, "context_size": 0}]
)
def test_perceptron_needs_an_input_and_a_layer(sizes):
    with pytest.raises(ValueError, match="MLP: expected an input or a context"):
        MLP(**{"out_size": 1, "rngs": nnx.Rngs(0)} | sizes)


def test_perceptron_of_input_and_context():
    network = MLP(2, 3, context_size=4, widths=(8, 8), rngs=nnx.Rngs(0))
    x, context = jnp.ones((5, 1, 2)), jnp.ones((7, 4))
    assert network(x, context).shape == (5, 7, 3)
    alone = MLP(0, 3, context_size=4, widths=(8,), rngs=nnx.Rngs(0))
    assert alone(None, context).shape == (7, 3)
    zero = MLP(2, 3, zero_init=True, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(zero(x), 0)
