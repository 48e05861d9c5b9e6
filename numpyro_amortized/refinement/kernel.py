# SPDX-License-Identifier: Apache-2.0
"""Moves of many Markov chains at once: NUTS, and jumps to draws of the amortized posterior.

All chains share a step size and a mass matrix, tuned by all of them, so that warm-up is short.
NUTS [3] explores a mode; jumps carry the chains from mode to mode at the rates that the exact
weights say. A jump is an independence-Metropolis move with several proposals: the chain goes to one
of them, or stays, with probability proportional to the importance weights [1, 2].

**References**

1. *Uniform ergodicity of the iterated conditional SMC and geometric ergodicity of particle Gibbs
   samplers*, Andrieu, Lee and Vihola (2018).
2. *Local-global MCMC kernels: the best of both worlds*, Samsonov, Lagutin, Gabrié, Durmus, Naumov
   and Moulines (2022).
3. *The no-U-turn sampler*, Hoffman and Gelman (2014).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax, random
from jax.scipy.linalg import solve_triangular
from numpyro.infer.hmc_util import (
    IntegratorState,
    build_tree,
    dual_averaging,
    euclidean_kinetic_energy,
    velocity_verlet,
)

from numpyro_amortized.approximators.vector_density import VectorDensity
from numpyro_amortized.refinement.proposals import DataSets

__all__ = ["Jumps", "Moves", "Points", "Tuning", "first_tuning", "move", "points_at"]

_TARGET_ACCEPTANCE = 0.9
_MAX_TREE_DEPTH = 10
_start_averaging, _average = dual_averaging()


class Points(NamedTuple):
    """Where chains are: positions ``(..., size)`` and what the model says there."""

    position: Array
    log_density: Array
    gradient: Array


class Tuning(NamedTuple):
    """What all chains share: the state of dual averaging, and the inverse mass matrix."""

    averaging: tuple[Array, ...]
    covariance: Array  # (size, size)


class Jumps(NamedTuple):
    """Draws of the amortized posterior for each step and chain, and their log weights."""

    vectors: Array  # (num_steps, num_chains, num_proposals, size)
    log_weights: Array  # (num_steps, num_chains, num_proposals)


class Moves(NamedTuple):
    """What chains went through, and how."""

    position: Array  # (num_steps, num_chains, size)
    log_density: Array  # (num_steps, num_chains)
    num_gradients: Array  # of all chains together
    num_divergences: Array
    num_jumps: Array


def first_tuning(covariance: Array, step_size: Array) -> Tuning:
    """Before the first step with a mass matrix."""
    averaging = _start_averaging(jnp.log(10 * step_size))
    return Tuning((jnp.log(step_size), jnp.log(step_size), *averaging[2:]), covariance)


def points_at(density: VectorDensity, position: Array, data: DataSets) -> Points:
    """Points of chains at ``(num_chains, size)`` for one data set."""
    each = jax.vmap(jax.value_and_grad(density), in_axes=(0, None, None))
    return Points(position, *each(position, *data))


def move(
    density: VectorDensity,
    graphdef: nnx.GraphDef,
    state: nnx.State,
    keys: Array,
    points: Points,
    tuning: Tuning,
    jumps: Jumps,
    data: DataSets,
    is_warmup: Array,
) -> tuple[Points, Tuning, Moves]:
    """Some steps of all chains of one data set; pure and traceable.

    :param keys: of each step.
    :param is_warmup: whether the step size is tuned.
    """
    network = density.approximator.density(nnx.merge(graphdef, state))
    observed = jax.tree.map(lambda x: x[None], data.observed)
    context = density.approximator.encode(graphdef, state, observed)

    def step(
        carry: tuple[Points, Tuning], xs: tuple[Array, Jumps]
    ) -> tuple[tuple[Points, Tuning], Moves]:
        (points, tuning), (key, jumps) = carry, xs
        tree_key, jump_key = random.split(key)
        points, accepted, tree = _nuts(tree_key, density, points, tuning, data, is_warmup)
        log_weights = points.log_density - network.log_prob(points.position, context)
        choice = _choose(jump_key, log_weights, jumps)
        ends = jnp.concatenate([points.position[:, None], jumps.vectors], axis=1)
        reached = jnp.take_along_axis(ends, choice[:, None, None], axis=1)[:, 0]
        points = points_at(density, reached, data)
        moves = Moves(points.position, points.log_density, *tree, jnp.sum(choice > 0))
        return (points, _tuned(tuning, accepted, is_warmup)), moves

    (points, tuning), each = lax.scan(step, (points, tuning), (keys, jumps))
    counts = (jnp.sum(count) for count in each[2:])
    return points, tuning, Moves(*each[:2], *counts)


def _tuned(tuning: Tuning, accepted: Array, is_warmup: Array) -> Tuning:
    averaging = _average(_TARGET_ACCEPTANCE - accepted, tuning.averaging)
    kept = jax.tree.map(lambda x, old: jnp.where(is_warmup, x, old), averaging, tuning.averaging)
    return tuning._replace(averaging=kept)


def _nuts(
    rng_key: Array,
    density: VectorDensity,
    points: Points,
    tuning: Tuning,
    data: DataSets,
    is_warmup: Array,
) -> tuple[Points, Array, tuple[Array, Array]]:
    """One step of NUTS of each chain, the mean acceptance, and counts."""
    log_step, averaged, *_ = tuning.averaging
    step_size = jnp.exp(jnp.where(is_warmup, log_step, averaged))
    root = jnp.linalg.cholesky(tuning.covariance)
    _, leapfrog = velocity_verlet(lambda z: -density(z, *data), euclidean_kinetic_energy)

    def one(rng_key: Array, point: Points) -> tuple[Points, Array, Array, Array]:
        momentum_key, tree_key = random.split(rng_key)
        noise = random.normal(momentum_key, point.position.shape)
        momentum = solve_triangular(root, noise, trans="T", lower=True)
        start = IntegratorState(point.position, momentum, -point.log_density, -point.gradient)
        tree = build_tree(
            leapfrog,
            euclidean_kinetic_energy,
            start,
            tuning.covariance,
            step_size,
            tree_key,
            max_tree_depth=_MAX_TREE_DEPTH,
        )
        end = Points(tree.z_proposal, -tree.z_proposal_pe, -tree.z_proposal_grad)
        accepted = tree.sum_accept_probs / tree.num_proposals
        return end, accepted, tree.num_proposals, tree.diverging

    keys = random.split(rng_key, len(points.position))
    points, accepted, num_gradients, diverging = jax.vmap(one)(keys, points)
    return points, jnp.mean(accepted), (jnp.sum(num_gradients), jnp.sum(diverging))


def _choose(rng_key: Array, log_weights: Array, jumps: Jumps) -> Array:
    """0 to stay, or the number of a proposal, for each chain."""
    log_weights = jnp.where(jnp.isnan(log_weights), jnp.inf, log_weights)  # beyond the network
    together = jnp.concatenate([log_weights[:, None], jumps.log_weights], axis=1)
    return random.categorical(rng_key, together, axis=-1)
