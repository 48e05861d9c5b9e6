# SPDX-License-Identifier: Apache-2.0
"""Many short Markov chains for a data set whose importance weights cannot be trusted."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, random

from numpyro_amortized.initializers import host_generator
from numpyro_amortized.refinement.convergence import least_ess, nested_rhat
from numpyro_amortized.refinement.kernel import (
    Jumps,
    Moves,
    Points,
    Tuning,
    first_tuning,
    move,
    points_at,
)
from numpyro_amortized.refinement.proposals import DataSets, Proposer
from numpyro_amortized.refinement.weighting import Weighted

__all__ = ["Chained", "run_chains", "some_rows"]

_NUM_SUPERCHAINS, _NUM_CHAINS = 16, 128
_NUM_STEPS, _NUM_JUMPS = 50, 2  # steps of a round, proposals of a jump
_NUM_WARMUP = 5  # rounds
_FIRST_STEP = 0.1
_MAX_RHAT = 1.01
_SHRINK = 5.0  # weight, in draws, of a small unit covariance, as in Stan's warm-up
_MOST_DENSE = 100


class Chained(NamedTuple):
    """What the chains of one data set found."""

    vectors: np.ndarray  # (num_samples, size), in random order
    log_density: np.ndarray
    nested_rhat: float
    ess: float
    num_densities: int
    num_divergences: int
    num_jumps: int
    has_converged: bool


class _Chains:
    """The chains of one data set, which move on in rounds of one compiled program."""

    def __init__(self, proposer: Proposer, data: DataSets, index: int) -> None:
        self.proposer, self.data, self.index = proposer, data, index
        self.one = data.rows(index)
        self.num_densities = 0

    def start(self, position: np.ndarray) -> Points:
        program = self.proposer.density.program(points_at)
        return program(jnp.asarray(position), self.one)

    def jumps(self, rng_key: Array) -> Jumps:
        """Fresh draws, so that no chain is offered what another one was."""
        count = _NUM_STEPS * _NUM_CHAINS * _NUM_JUMPS
        rows = np.full(-(-count // self.proposer.num_samples), self.index)
        made = self.proposer(rng_key, self.data, rows)
        self.num_densities += len(rows) * self.proposer.num_samples
        shape = (_NUM_STEPS, _NUM_CHAINS, _NUM_JUMPS)
        flat = made.vectors.reshape(-1, made.vectors.shape[-1])[:count]
        log_weights = made.log_weights.reshape(-1)[:count]
        return Jumps(jnp.asarray(flat.reshape(*shape, -1)), jnp.asarray(log_weights.reshape(shape)))

    def round(
        self, rng_key: Array, points: Points, tuning: Tuning, *, is_warmup: bool
    ) -> tuple[Points, Tuning, Moves]:
        jump_key, move_key = random.split(rng_key)
        keys = random.split(move_key, _NUM_STEPS)
        program = self.proposer.density.program(move, static=(0,))
        graphdef, state = self.proposer.networks
        jumps, flag = self.jumps(jump_key), jnp.asarray(is_warmup)
        result = program(graphdef, state, keys, points, tuning, jumps, self.one, flag)
        points, tuning, moves = result
        moves = jax.device_get(moves)
        self.num_densities += int(moves.num_gradients) + _NUM_STEPS * _NUM_CHAINS
        return points, tuning, moves


def run_chains(
    rng_key: Array,
    *,
    proposer: Proposer,
    data: DataSets,
    index: int,
    weighted: Weighted,
    dispersed: np.ndarray,
    num_samples: int,
    is_wary: bool,
    max_rounds: int,
) -> Chained:
    """Chains from the best draws and from all over the prior, until they agree.

    :param rng_key: a key.
    :param proposer: of jumps.
    :param data: all data sets.
    :param index: of the data set.
    :param weighted: its weighted draws.
    :param dispersed: vectors all over the prior, ``(num, size)``.
    :param num_samples: draws that are wanted.
    :param is_wary: whether warm-up takes twice as long.
    :param max_rounds: after the warm-up.
    """
    start_key, warm_key, run_key, choice_key = random.split(rng_key, 4)
    chains = _Chains(proposer, data, index)
    points = _starts(start_key, chains, weighted, dispersed)
    points, tuning = _warm_up(warm_key, chains, points, _NUM_WARMUP * (1 + is_wary))
    rounds: list[Moves] = []
    for key in random.split(run_key, max_rounds):
        points, _, moves = chains.round(key, points, tuning, is_warmup=False)
        rounds.append(moves)
        has_converged, kept, rhat, ess = _judged(rounds, num_samples)
        if has_converged:
            break
    position, log_density = kept
    total = position.shape[0] * position.shape[1]
    chosen = some_rows(choice_key, total, num_samples)
    return Chained(
        position.reshape(total, -1)[chosen],
        log_density.reshape(total)[chosen],
        rhat,
        ess,
        chains.num_densities,
        sum(int(moves.num_divergences) for moves in rounds),
        sum(int(moves.num_jumps) for moves in rounds),
        has_converged,
    )


def some_rows(rng_key: Array, total: int, num_samples: int) -> np.ndarray:
    """Indices of draws that are returned, all different where there are enough.

    At random: an even stride through steps and chains may meet the same chains in every step.
    """
    return np.resize(host_generator(rng_key).permutation(total), num_samples)


def _starts(rng_key: Array, chains: _Chains, weighted: Weighted, dispersed: np.ndarray) -> Points:
    """Half of the superchains at draws of high weight, all different, half at prior points."""
    half = _NUM_SUPERCHAINS // 2
    best = weighted.proposals.log_weights + random.gumbel(rng_key, (weighted.num_draws,))
    drawn = weighted.proposals.vectors[np.resize(np.argsort(-np.asarray(best)), 2 * half)]
    # in the order of preference
    points = jax.device_get(chains.start(np.concatenate([drawn[:half], dispersed, drawn[half:]])))
    sound = np.isfinite(points.log_density) & np.isfinite(points.gradient).all(1)
    first = np.argsort(~sound, stable=True)[:_NUM_SUPERCHAINS]
    repeated = np.repeat(first, _NUM_CHAINS // _NUM_SUPERCHAINS)
    return jax.tree.map(lambda x: jnp.asarray(x[repeated]), points)


def _warm_up(
    rng_key: Array, chains: _Chains, points: Points, num_rounds: int
) -> tuple[Points, Tuning]:
    """Tune the step size in every round, and the mass matrix after all but the last."""
    size, dtype = points.position.shape[-1], points.position.dtype
    tuning = first_tuning(jnp.eye(size, dtype=dtype), jnp.asarray(_FIRST_STEP, dtype))
    for turn, key in enumerate(random.split(rng_key, num_rounds)):
        points, tuning, moves = chains.round(key, points, tuning, is_warmup=True)
        if turn < num_rounds - 1:
            late = np.asarray(moves.position[_NUM_STEPS // 2 :])
            covariance = _covariance(late.reshape(-1, size))
            tuning = first_tuning(jnp.asarray(covariance), jnp.exp(tuning.averaging[1]))
    return points, tuning


def _covariance(draws: np.ndarray) -> np.ndarray:
    """Regularized as in Stan's warm-up; of many variables the variances alone."""
    num_draws, size = draws.shape
    estimate = np.atleast_2d(np.cov(draws, rowvar=False))
    if size > _MOST_DENSE:
        estimate = np.diag(np.diag(estimate))
    share = num_draws / (num_draws + _SHRINK)
    return (share * estimate + 1e-3 * (1 - share) * np.eye(size)).astype(draws.dtype)


def _judged(
    rounds: list[Moves], num_samples: int
) -> tuple[bool, tuple[np.ndarray, np.ndarray], float, float]:
    """Whether they are enough; positions and log densities; nested R-hat; and what they are worth.

    Of all rounds, or of the later half of them where these agree better.
    """
    verdicts = []
    for first in {0, len(rounds) // 2}:
        position = np.concatenate([moves.position for moves in rounds[first:]])
        log_density = np.concatenate([moves.log_density for moves in rounds[first:]])
        values = np.concatenate([position, log_density[..., None]], axis=-1)
        rhat, ess = nested_rhat(values, _NUM_SUPERCHAINS), least_ess(values)
        is_enough = rhat <= _MAX_RHAT and min(ess, log_density.size) >= num_samples
        verdicts.append((is_enough, (position, log_density), rhat, ess))
    return max(verdicts, key=lambda verdict: (verdict[0], -verdict[2]))
