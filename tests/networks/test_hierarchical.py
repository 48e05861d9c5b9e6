# SPDX-License-Identifier: Apache-2.0
"""Densities over groups: their factors, absent groups, any number of groups."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import random

from numpyro_amortized.networks import Affine, CouplingFlow, DeepSet, GroupSummary, Hierarchical
from numpyro_amortized.networks import hierarchical as module
from tests.networks.test_coupling_flow import perturbed

FLOW = partial(CouplingFlow, depth=1, widths=(8,), transform=Affine())
SETS = partial(DeepSet, summary_size=3, widths=(8,), embedding_size=8)
NUM_GROUPS, NUM_GLOBALS, LOCAL_SIZE, CONDITIONS = 11, 2, 3, 1


@pytest.fixture(scope="module")
def networks():
    sizes = {"group": 2, "y": 1}
    summary = GroupSummary(sizes, plate="group", over=SETS, networks={"y": SETS}, rngs=nnx.Rngs(0))
    condition_size = CONDITIONS + 3 + NUM_GROUPS * (5 + 1)
    density = Hierarchical(
        NUM_GLOBALS + NUM_GROUPS * LOCAL_SIZE,
        condition_size,
        num_globals=NUM_GLOBALS,
        num_groups=NUM_GROUPS,
        group_size=summary.group_size,
        summary_size=summary.summary_size,
        globals=FLOW,
        locals=FLOW,
        rngs=nnx.Rngs(1),
    )
    return summary, perturbed(density)


def data(num_groups, batch=4):
    keys = random.split(random.key(0), 3)
    arrays = {
        "group": random.normal(keys[0], (batch, num_groups, 2)),
        "y": random.normal(keys[1], (batch, num_groups, 6, 1)),
    }
    return arrays, random.normal(keys[2], (batch, NUM_GLOBALS + num_groups * LOCAL_SIZE))


def context_of(summary, arrays, masks=None):
    batch = len(arrays["group"])
    return jnp.concatenate([jnp.ones((batch, CONDITIONS)), summary(arrays, masks)], axis=-1)


@pytest.mark.verify
def test_the_density_is_the_product_of_its_factors(networks):
    summary, density = networks
    arrays, variables = data(NUM_GROUPS)
    own, rows = variables[:, :2], variables[:, 2:].reshape(4, NUM_GROUPS, LOCAL_SIZE)
    groups = jnp.concatenate([arrays["group"], summary.networks[0](arrays["y"])], axis=-1)
    over = jnp.concatenate([jnp.ones((4, 1)), summary.over(groups)], axis=-1)
    expected = jax.jit(density.globals.log_prob)(own, over)
    of_group = jax.jit(density.locals.log_prob)
    for j in range(NUM_GROUPS):
        given = jnp.concatenate([own, jnp.ones((4, 1)), groups[:, j]], axis=-1)
        expected += of_group(rows[:, j], given)
    got = jax.jit(density.log_prob)(variables, context_of(summary, arrays))
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.verify
def test_draws_have_the_density_in_chunks_too(networks, monkeypatch):
    summary, density = networks
    context = context_of(summary, data(NUM_GROUPS)[0])
    for rows in (2**12, 8):  # all groups at once, or two at a time
        monkeypatch.setattr(module, "_rows", lambda rows=rows: rows)
        draws, log_q = jax.jit(lambda c: density.sample_and_log_prob(random.key(3), c))(context)
        assert jnp.std(draws[:, 2:]) > 0.1
        log_prob = jax.jit(lambda *arguments: density.log_prob(*arguments))
        np.testing.assert_allclose(log_prob(draws, context), log_q, rtol=1e-4, atol=1e-3)
        repeated = log_prob(draws[:, None], context[:, None])
        np.testing.assert_allclose(repeated[:, 0], log_q, rtol=1e-4, atol=1e-3)


@pytest.mark.verify
def test_absent_groups_have_no_part(networks):
    summary, density = networks
    arrays, variables = data(NUM_GROUPS)
    masks = {"group": jnp.broadcast_to(jnp.arange(NUM_GROUPS) < 6, (4, NUM_GROUPS))}
    masked = context_of(summary, arrays, masks)
    few = context_of(summary, {name: x[:, :6] for name, x in arrays.items()})
    first = variables[:, : NUM_GLOBALS + 6 * LOCAL_SIZE]
    log_prob, loss = jax.jit(density.log_prob), jax.jit(density.loss)
    np.testing.assert_allclose(
        log_prob(variables, masked), log_prob(first, few), rtol=1e-5, atol=1e-4
    )
    absent = variables.at[:, NUM_GLOBALS + 6 * LOCAL_SIZE :].add(3.0)
    np.testing.assert_array_equal(
        loss(random.key(0), variables, masked), loss(random.key(0), absent, masked)
    )


@pytest.mark.verify
def test_the_order_of_groups_does_not_matter(networks):
    summary, density = networks
    arrays, variables = data(NUM_GROUPS)
    order = np.random.default_rng(0).permutation(NUM_GROUPS)
    rows = variables[:, 2:].reshape(4, NUM_GROUPS, LOCAL_SIZE)[:, order].reshape(4, -1)
    moved = jnp.concatenate([variables[:, :2], rows], axis=-1)
    np.testing.assert_allclose(
        density.log_prob(variables, context_of(summary, arrays)),
        density.log_prob(moved, context_of(summary, {n: x[:, order] for n, x in arrays.items()})),
        rtol=1e-5,
        atol=1e-4,
    )


@pytest.mark.verify
def test_the_loss_is_that_of_both_factors(networks):
    """On average over the groups chosen: globals, and the mean of the groups."""
    summary, density = networks
    arrays, variables = data(NUM_GROUPS)
    context = context_of(summary, arrays)
    keys = random.split(random.key(4), 200)
    losses = jax.jit(jax.vmap(lambda key: density.loss(key, variables, context)))(keys)
    own = jax.jit(density.globals.log_prob)(variables[:, :2], context[:, : density.shared_size])
    expected = -own - (jax.jit(density.log_prob)(variables, context) - own) / NUM_GROUPS
    error = losses.std(0) / np.sqrt(200)
    assert (jnp.abs(losses.mean(0) - expected) < 5 * error + 1e-4).all()


@pytest.mark.verify
def test_groups_are_encoded_in_chunks_alike(networks, monkeypatch):
    summary, _ = networks
    arrays, _ = data(NUM_GROUPS)
    masks = {"group": jnp.broadcast_to(jnp.arange(NUM_GROUPS) < 6, (4, NUM_GROUPS))}

    def total(state, rows):
        monkeypatch.setattr(module, "_rows", lambda: rows)
        return (nnx.merge(graphdef, state)(arrays, masks) ** 2).sum()

    graphdef, state = nnx.split(summary)
    at_once, in_chunks = (
        jax.jit(jax.value_and_grad(partial(total, rows=rows)))(state) for rows in (10**6, 200)
    )
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), at_once, in_chunks)
