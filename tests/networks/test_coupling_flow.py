# SPDX-License-Identifier: Apache-2.0
"""Laws of density networks, over every transform and several sizes."""

from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import random
from scipy import stats

from numpyro_amortized.networks import Affine, CouplingFlow, Spline
from tests.conftest import others_verified
from tests.networks.laws import (
    check_context_broadcasts,
    check_eager_and_vectorized,
    program_length,
)

CONTEXT = np.array([0.3, -1.2], np.float32)
FLOWS = {
    "spline": partial(CouplingFlow, depth=2, widths=(16, 16), transform=Spline(bins=8)),
    "affine": partial(CouplingFlow, depth=2, widths=(16, 16), transform=Affine()),
}


def perturbed(network: nnx.Module, scale: float = 0.04) -> nnx.Module:
    """Networks begin as the identity, which would satisfy any law."""
    graphdef, params, rest = nnx.split(network, nnx.Param, ...)
    leaves, treedef = jax.tree.flatten(params)
    keys = random.split(random.key(7), len(leaves))
    noisy = [
        leaf + scale * random.normal(key, leaf.shape, leaf.dtype)
        for key, leaf in zip(keys, leaves, strict=True)
    ]
    return nnx.merge(graphdef, jax.tree.unflatten(treedef, noisy), rest)


class Compiled(NamedTuple):
    """A flow and its compiled methods: most of the time here goes into compiling."""

    kind: str
    size: int
    flow: CouplingFlow
    log_prob: Callable
    transport: Callable


@pytest.fixture(scope="module", params=others_verified(FLOWS, {"spline"}))
def kind(request):
    return request.param


@pytest.fixture(scope="module", params=others_verified((1, 2, 3), {3}))
def size(request):
    return request.param


@cache
def compiled(kind: str, size: int, condition_size: int = len(CONTEXT)) -> Compiled:
    flow = perturbed(FLOWS[kind](size, condition_size, rngs=nnx.Rngs(1)))
    return Compiled(kind, size, flow, jax.jit(flow.log_prob), jax.jit(flow.transport))


@pytest.fixture(scope="module")
def flow(kind, size):
    return compiled(kind, size)


def sinh_grid(num: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes from -200 to 200, dense in the middle, and their trapezoidal weights."""
    t = np.linspace(-6, 6, num)
    return np.sinh(t), np.cosh(t) * (t[1] - t[0])


def test_starts_as_the_standard_normal(kind, size):
    flow = FLOWS[kind](size, len(CONTEXT), rngs=nnx.Rngs(0))
    x = 2 * random.normal(random.key(0), (50, size))
    log_q = jax.jit(flow.log_prob)(x, CONTEXT)
    np.testing.assert_allclose(log_q, stats.norm.logpdf(x).sum(-1), rtol=1e-4, atol=1e-4)


def test_draws_carry_their_own_density(flow):
    base = random.normal(random.key(0), (200, flow.size))
    draws, log_q = flow.transport(base, CONTEXT)
    assert jnp.abs(draws - base).max() > 0.05  # not the identity
    error = np.abs(flow.log_prob(draws, CONTEXT) - log_q) / (1 + np.abs(log_q))
    # steep conditionals magnify float32's rounding for a few; float64 is held to all, below
    assert np.quantile(error, 0.95) < 1e-3


def test_log_det_is_that_of_autodiff(flow):
    def exact(z):
        jacobian = jax.jacfwd(lambda z: flow.flow.transport(z, CONTEXT)[0])(z)
        return jax.scipy.stats.norm.logpdf(z).sum() - jnp.linalg.slogdet(jacobian)[1]

    base = random.normal(random.key(2), (20, flow.size))
    expected = jax.jit(jax.vmap(exact))(base)
    np.testing.assert_allclose(flow.transport(base, CONTEXT)[1], expected, rtol=1e-3, atol=1e-3)


def test_one_dimensional_density_integrates_to_one(kind):
    x, weights = sinh_grid(4001)
    density = jnp.exp(compiled(kind, 1).log_prob(jnp.asarray(x, jnp.float32)[:, None], CONTEXT))
    assert abs(float(density @ weights) - 1) < 2e-3  # the trapezoid's error at kinks


@pytest.mark.verify
def test_two_dimensional_density_integrates_to_one(kind):
    x, weights = sinh_grid(401)
    grid = jnp.stack(jnp.meshgrid(*2 * [jnp.asarray(x, jnp.float32)], indexing="ij"), axis=-1)
    density = jnp.exp(compiled(kind, 2).log_prob(grid, CONTEXT))
    assert abs(float(weights @ density @ weights) - 1) < 1e-2


def test_draws_follow_the_density(kind):
    flow, num = compiled(kind, 1), 20_000
    draws, _ = flow.transport(random.normal(random.key(3), (num, 1)), CONTEXT)
    x, weights = sinh_grid(20_001)
    density = np.exp(flow.log_prob(jnp.asarray(x, jnp.float32)[:, None], CONTEXT))
    cdf = np.cumsum(np.asarray(density, np.float64) * weights)
    edges = np.interp(np.linspace(0, 1, 21)[1:-1], cdf / cdf[-1], x)
    counts = np.bincount(np.searchsorted(edges, draws[:, 0]), minlength=20)
    # a chi-square test of 20 cells that are equally likely under the density
    assert stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.verify
def test_sample_is_a_function_of_the_key(kind):
    flow, contexts = compiled(kind, 2), jnp.tile(CONTEXT, (5, 1))
    draw = jax.jit(flow.flow.sample_and_log_prob)
    draws, log_q = draw(random.key(1), contexts)
    assert draws.shape == (5, 2) and log_q.shape == (5,)
    np.testing.assert_array_equal(draws, draw(random.key(1), contexts)[0])
    assert (draws != draw(random.key(2), contexts)[0]).any()
    sampled = jax.jit(flow.flow.sample)(random.key(1), contexts)
    np.testing.assert_allclose(sampled, draws, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(flow.log_prob(draws, contexts), log_q, rtol=1e-3, atol=1e-3)


def test_gradients_are_finite_and_reach_every_layer(kind):
    flow = compiled(kind, 2)
    graphdef, params, rest = nnx.split(flow.flow, nnx.Param, ...)
    # far outside, on the bound and in the middle of the spline
    x = jnp.array([-1e3, -5.0, 0.0, 5.0, 1e3])[:, None] * jnp.ones(flow.size)
    contexts = jnp.tile(CONTEXT, (5, 1))

    def loss(params):
        network = nnx.merge(graphdef, params, rest)
        return network.loss(random.key(0), x, contexts).mean()

    gradients = jax.tree.leaves(jax.jit(jax.grad(loss))(params))
    assert all(bool(jnp.isfinite(g).all()) for g in gradients)
    assert all(bool((g != 0).any()) for g in gradients)


def test_context_broadcasts_and_matters(kind):
    check_context_broadcasts(compiled(kind, 2).log_prob, len(CONTEXT))


def test_eager_and_vectorized_agree_with_compiled(kind):
    flow = compiled(kind, 2)
    check_eager_and_vectorized(flow.flow.log_prob, flow.log_prob, len(CONTEXT))


def test_without_context(kind):
    flow, empty = compiled(kind, 2, condition_size=0), jnp.zeros((7, 0))
    draws, log_q = flow.transport(random.normal(random.key(0), (7, 2)), empty)
    np.testing.assert_allclose(flow.log_prob(draws, empty), log_q, rtol=1e-3, atol=1e-3)


def test_double_precision(kind):
    with jax.enable_x64(True):
        graphdef, params, rest = nnx.split(compiled(kind, 3).flow, nnx.Param, ...)
        params = jax.tree.map(lambda p: p.astype(jnp.float64), params)
        flow, context = nnx.merge(graphdef, params, rest), jnp.asarray(CONTEXT, jnp.float64)
        base = random.normal(random.key(0), (100, 3), jnp.float64)
        draws, log_q = jax.jit(flow.transport)(base, context)
        assert draws.dtype == log_q.dtype == jnp.float64
        again = jax.jit(flow.log_prob)(draws, context)
        np.testing.assert_allclose(again, log_q, rtol=1e-7, atol=1e-7)


def test_program_does_not_grow_with_depth():
    def program(depth):
        flow = CouplingFlow(2, 2, depth=depth, widths=(8,), rngs=nnx.Rngs(0))
        return program_length(flow.log_prob)

    assert program(2) == program(6)


@pytest.mark.parametrize("size", [0, -1])
def test_size_must_be_positive(size):
    with pytest.raises(ValueError, match="CouplingFlow: expected size >= 1"):
        CouplingFlow(size, 3, rngs=nnx.Rngs(0))
