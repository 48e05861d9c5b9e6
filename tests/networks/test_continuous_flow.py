# SPDX-License-Identifier: Apache-2.0
"""Laws of flow matching and diffusion models, trained or not."""

from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax import random
from scipy import stats

from numpyro_amortized.networks.continuous_flow import ContinuousFlow, _probes, stratified
from numpyro_amortized.networks.diffusion import DiffusionModel
from numpyro_amortized.networks.flow_matching import FlowMatching
from numpyro_amortized.networks.ode import Adaptive, FixedStep
from tests.networks import mixture
from tests.networks.laws import (
    check_context_broadcasts,
    check_eager_and_vectorized,
    program_length,
)

pytestmark = pytest.mark.verify  # compiling takes minutes

CONTEXT = np.array([0.3, -1.2], np.float32)
SMALL = {"widths": (16, 16), "embedding_size": 8}
FLOWS = {"flow matching": FlowMatching, "diffusion": DiffusionModel}


def perturbed(flow: ContinuousFlow, scale: float = 0.07) -> ContinuousFlow:
    """Flows begin as the identity, which would satisfy any law."""
    graphdef, params = nnx.split(flow)
    leaves, treedef = jax.tree.flatten(params)
    keys = random.split(random.key(7), len(leaves))
    noisy = [
        leaf + scale * random.normal(key, leaf.shape, leaf.dtype)
        for key, leaf in zip(keys, leaves, strict=True)
    ]
    return nnx.merge(graphdef, jax.tree.unflatten(treedef, noisy))


class Compiled(NamedTuple):
    """A flow and its compiled methods: most of the time here goes into compiling."""

    flow: ContinuousFlow
    log_prob: Callable
    transport: Callable


@pytest.fixture(scope="module", params=FLOWS)
def kind(request):
    return request.param


@cache
def compiled(kind: str, size: int, condition_size: int = len(CONTEXT)) -> Compiled:
    make = partial(FLOWS[kind], **SMALL, rngs=nnx.Rngs(1))
    flow = perturbed(make(size, condition_size))
    return Compiled(flow, jax.jit(flow.log_prob), jax.jit(flow.transport))


@pytest.fixture(scope="module", params=[1, 2])
def flow(kind, request):
    return compiled(kind, request.param)


def test_starts_as_the_standard_normal(kind):
    flow = FLOWS[kind](3, len(CONTEXT), **SMALL, rngs=nnx.Rngs(0))
    x = 2 * random.normal(random.key(0), (50, 3))
    draws, log_q = jax.jit(flow.transport)(x, CONTEXT)
    # what is left is the solver's error
    np.testing.assert_allclose(draws, x, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(log_q, stats.norm.logpdf(x).sum(-1), rtol=1e-3, atol=1e-3)
    t = np.array([[0.0], [0.4], [0.9]])
    # the standard normal is mixed with noise of variance one
    data, noise = (t, 1 - t) if kind == "flow matching" else (1.0, 0.0)
    expected = -x / (data**2 + noise**2)[..., None] if kind == "flow matching" else [-x] * 3
    found = jax.jit(flow.score)(t, x, CONTEXT)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_draws_carry_their_own_density(flow):
    base = random.normal(random.key(0), (200, flow.flow.size))
    draws, log_q = flow.transport(base, CONTEXT)
    assert jnp.abs(draws - base).max() > 0.3  # not the identity
    # both solve the same equation, in opposite directions
    np.testing.assert_allclose(flow.log_prob(draws, CONTEXT), log_q, rtol=1e-3, atol=1e-3)


def test_log_det_is_that_of_autodiff(kind):
    flow = compiled(kind, 2)

    def exact(z):
        jacobian = jax.jacfwd(lambda z: flow.flow.transport(z, CONTEXT)[0])(z)
        return jax.scipy.stats.norm.logpdf(z).sum() - jnp.linalg.slogdet(jacobian)[1]

    base = random.normal(random.key(2), (20, 2))
    expected = jax.jit(jax.vmap(exact))(base)
    np.testing.assert_allclose(flow.transport(base, CONTEXT)[1], expected, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize(("size", "num"), [(1, 401), (2, 81)])
def test_density_integrates_to_one(kind, size, num):
    # no draw is moved by more than ten; the trapezoidal rule is exact for what is smooth
    x = jnp.linspace(-20, 20, num)
    grid = jnp.stack(jnp.meshgrid(*size * [x], indexing="ij"), axis=-1)
    density = jnp.exp(compiled(kind, size).log_prob(grid, CONTEXT))
    assert abs(float(density.sum() * (x[1] - x[0]) ** size) - 1) < 2e-3


def test_draws_follow_the_density(kind):
    flow = compiled(kind, 1)
    draws, _ = flow.transport(random.normal(random.key(3), (10_000, 1)), CONTEXT)
    x = np.linspace(-20, 20, 801)
    density = flow.log_prob(jnp.asarray(x, jnp.float32)[:, None], CONTEXT)
    cdf = np.cumsum(np.exp(np.asarray(density, np.float64)))
    edges = np.interp(np.linspace(0, 1, 21)[1:-1], cdf / cdf[-1], x)
    counts = np.bincount(np.searchsorted(edges, draws[:, 0]), minlength=20)
    # a chi-square test of 20 cells that are equally likely under the density
    assert stats.chisquare(counts).pvalue > 1e-3


def test_sample_is_a_function_of_the_key(kind, compilations):
    flow, contexts = compiled(kind, 2), jnp.tile(CONTEXT, (5, 1))
    draw, sample = jax.jit(flow.flow.sample_and_log_prob), jax.jit(flow.flow.sample)
    first, second = random.key(1), random.key(2)
    draws, log_q = draw(first, contexts)
    assert draws.shape == (5, 2) and log_q.shape == (5,)
    np.testing.assert_allclose(sample(first, contexts), draws, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(flow.log_prob(draws, contexts), log_q, rtol=1e-3, atol=1e-3)

    before = len(compilations)
    again, other = draw(first, contexts)[0], draw(second, contexts)[0]
    sample(second, contexts)
    assert len(compilations) == before
    np.testing.assert_array_equal(draws, again)
    assert not np.array_equal(draws, other)


def test_gradients_are_finite_and_reach_every_layer(kind):
    flow = compiled(kind, 2).flow
    graphdef, params = nnx.split(flow)
    x = jnp.array([-1e3, 0.0, 1.0, 1e3])[:, None] * jnp.ones(2)
    contexts = jnp.tile(CONTEXT, (4, 1))
    losses = {
        "loss": lambda flow: flow.loss(random.key(0), x, contexts),
        "density": lambda flow: flow.log_prob(x, contexts),
    }
    for loss in losses.values():
        function = jax.grad(lambda p, f=loss: f(nnx.merge(graphdef, p)).mean())
        gradients = jax.tree.leaves(jax.jit(function)(params))
        assert all(bool(jnp.isfinite(g).all()) for g in gradients)
        assert all(bool((g != 0).any()) for g in gradients)


def test_context_broadcasts_and_matters(kind):
    flow = compiled(kind, 2)
    x, contexts = check_context_broadcasts(flow.log_prob, len(CONTEXT))
    times = jnp.array([0.1, 0.5, 0.7])
    scores = flow.flow.score(times, x, contexts)
    assert scores.shape == (4, 3, 2)
    last = flow.flow.score(0.7, x[2], contexts[3, 0])
    np.testing.assert_allclose(scores[3, 2], last, rtol=1e-4, atol=1e-4)


def test_eager_and_vectorized_agree_with_compiled(kind):
    flow = compiled(kind, 2)
    check_eager_and_vectorized(flow.flow.log_prob, flow.log_prob, len(CONTEXT))


def test_without_context(kind):
    flow = FLOWS[kind](2, 0, **SMALL, rngs=nnx.Rngs(0))
    draws, log_q = jax.jit(flow.sample_and_log_prob)(random.key(0), jnp.zeros((7, 0)))
    assert draws.shape == (7, 2) and log_q.shape == (7,)
    np.testing.assert_allclose(log_q, stats.norm.logpdf(draws).sum(-1), rtol=1e-3, atol=1e-3)
    assert flow.loss(random.key(0), draws, jnp.zeros((7, 0))).shape == (7,)


def test_double_precision(kind):
    with jax.enable_x64(True):
        graphdef, params = nnx.split(compiled(kind, 2).flow)
        params = jax.tree.map(lambda p: p.astype(jnp.float64), params)
        flow, context = nnx.merge(graphdef, params), jnp.asarray(CONTEXT, jnp.float64)
        flow.solver = nnx.static(FixedStep(steps=60))
        base = random.normal(random.key(0), (20, 2), jnp.float64)
        draws, log_q = jax.jit(flow.transport)(base, context)
        assert draws.dtype == log_q.dtype == jnp.float64
        again = jax.jit(flow.log_prob)(draws, context)
        np.testing.assert_allclose(again, log_q, rtol=1e-5, atol=1e-5)
        assert flow.loss(random.key(0), draws, jnp.tile(context, (20, 1))).dtype == jnp.float64


def test_adaptive_solver_agrees():
    pytest.importorskip("diffrax")
    flow, base = compiled("flow matching", 2), random.normal(random.key(0), (20, 2))
    draws, log_q = flow.transport(base, CONTEXT)
    adaptive = nnx.clone(flow.flow)
    adaptive.solver = nnx.static(Adaptive())
    found = jax.jit(adaptive.transport)(base, CONTEXT)
    for array, expected in zip(found, (draws, log_q), strict=True):
        np.testing.assert_allclose(array, expected, rtol=1e-3, atol=1e-3)


def test_divergence_of_many_variables(kind):
    flow = perturbed(FLOWS[kind](12, len(CONTEXT), **SMALL, rngs=nnx.Rngs(1)), 0.1)
    x = random.normal(random.key(0), (30, 12))
    exact = jax.jit(flow.log_prob)(x, CONTEXT)
    flow.num_probes = 6
    estimate = jax.jit(flow.log_prob)
    found = estimate(x, CONTEXT)
    assert 0 < np.abs(found - exact).mean() < np.abs(exact - stats.norm.logpdf(x).sum(-1)).mean()
    # the directions are those of the network, the same for all events
    np.testing.assert_allclose(estimate(x[::-1], CONTEXT)[::-1], found, rtol=1e-4)


def test_directions_add_up_to_the_trace():
    matrix = np.random.default_rng(0).standard_normal((40, 40))
    np.testing.assert_allclose(_estimate(40, matrix), np.trace(matrix))
    symmetric = (matrix + matrix.T) / 2
    rest = symmetric - np.trace(matrix) / 40 * np.eye(40)
    for num_probes in (1, 8, 39):
        error = np.sqrt(2 * (1 - num_probes / 40) / num_probes) * np.linalg.norm(rest)
        assert abs(_estimate(num_probes, matrix) - np.trace(matrix)) < 4 * error


def _estimate(num_probes: int, matrix: np.ndarray) -> float:
    probes = _probes(len(matrix), num_probes)
    return np.sum(probes @ matrix * probes)


def test_program_does_not_grow_with_depth(kind):
    def program(depth):
        flow = FLOWS[kind](2, 2, widths=(8,) * depth, rngs=nnx.Rngs(0))
        return program_length(flow.log_prob)

    assert program(2) == program(6)


@cache
def exact(kind: str) -> ContinuousFlow:
    """A flow whose network knows a mixture exactly, with the default solver."""
    return mixture.exact(FLOWS[kind](1, 1, **SMALL, rngs=nnx.Rngs(0)))


def test_density_of_the_exact_network(kind):
    context = jnp.array([0.5])
    x = jnp.linspace(-2, 2.5, 300)[:, None]
    log_p = mixture.log_density(x, context)
    log_q = jax.jit(exact(kind).log_prob)(x, context)
    # the divergence from the mixture is the default solver's error, far below that of training
    density = jnp.exp(log_p)
    assert float((density * jnp.abs(log_q - log_p)).sum() / density.sum()) < 0.01


def test_score_of_the_exact_network(kind):
    context, t = jnp.array([0.5]), np.array([0.0, 0.2, 0.6, 0.9, 0.99])
    x = jnp.linspace(-2, 2.5, 100)[:, None]
    angle = (1 - t) * np.pi / 2
    data, noise = (t, 1 - t) if kind == "flow matching" else (np.cos(angle), np.sin(angle))

    def log_density(x, data, noise):
        return mixture.log_density(x, context, data, noise)

    slope = jax.vmap(jax.vmap(jax.grad(log_density), (None, 0, 0)), (0, None, None))
    expected = jax.jit(slope)(x, data, noise)
    found = jax.jit(exact(kind).score)(t, x[:, None], context)
    # an error of the prediction is divided by the noise that is left
    tolerance = 1e-4 * np.abs(expected).max((0, 2)) / noise
    assert (np.abs(found - expected).max((0, 2)) < tolerance).all()


def test_draws_of_the_exact_network(kind):
    draws = jax.jit(exact(kind).sample)(random.key(0), jnp.full((5000, 1), 0.5))
    expected = mixture.draw(random.key(1), jnp.full((5000, 1), 0.5))
    assert stats.ks_2samp(draws[:, 0], expected[:, 0]).pvalue > 1e-3


def test_training_finds_the_density(kind):
    flow = FLOWS[kind](1, 1, widths=(32,) * 2, rngs=nnx.Rngs(0))
    graphdef, params = nnx.split(flow)
    num_steps = 600
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, num_steps))

    def step(carry, rng_key):
        params, state = carry
        context_key, draw_key, loss_key = random.split(rng_key, 3)
        contexts = random.normal(context_key, (128, 1))
        variables = mixture.draw(draw_key, contexts)

        def loss(params):
            return nnx.merge(graphdef, params).loss(loss_key, variables, contexts).mean()

        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return (optax.apply_updates(params, updates), state), None

    keys = random.split(random.key(0), num_steps)
    train = jax.jit(lambda params: jax.lax.scan(step, (params, optimizer.init(params)), keys)[0][0])
    trained = nnx.merge(graphdef, train(params))
    contexts = random.normal(random.key(1), (1000, 1))
    x = mixture.draw(random.key(2), contexts)
    divergence = mixture.log_density(x, contexts) - jax.jit(trained.log_prob)(x, contexts)
    assert divergence.mean() < 0.05


def test_stratified_draws_are_uniform_and_spread():
    draws = stratified(random.key(0), (10, 10), jnp.float32)
    assert draws.shape == (10, 10) and (draws >= 0).all() and (draws < 1).all()
    gaps = np.diff(np.sort(draws, axis=None))
    np.testing.assert_allclose(gaps, 0.01, atol=1e-5)
    firsts = jax.vmap(lambda key: stratified(key, (3,), jnp.float32)[0])(
        random.split(random.key(1), 1000)
    )
    assert stats.kstest(firsts, "uniform").pvalue > 1e-3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "expected size >= 1|expected an input"),
        ({"num_probes": 0}, "num_probes >= 1"),
        ({"widths": (8, 16)}, "widths that are all equal"),
        ({"widths": ()}, "widths that are all equal"),
    ],
)
def test_bad_options(kind, options, message):
    with pytest.raises(ValueError, match=message):
        FLOWS[kind](**{"size": 2, "condition_size": 1, "rngs": nnx.Rngs(0)} | options)
