# SPDX-License-Identifier: Apache-2.0
"""Draws of the amortized posterior, with the model's density and the network's at each."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx
from jax import Array, random

from numpyro_amortized.approximators.conditions import map_in_chunks
from numpyro_amortized.approximators.vector_density import VectorDensity

__all__ = ["ROWS", "DataSets", "Proposals", "Proposer"]

ROWS = 2**16  # densities at a time, which bounds memory


class DataSets(NamedTuple):
    """Data with a leading axis of data sets, or one data set without it."""

    observed: Mapping[str, Array]  # as the networks see it, padded where the size varies
    given: Mapping[str, Array]  # of its own size

    def rows(self, indices: np.ndarray | int) -> "DataSets":
        """Some of the data sets, or one."""
        return jax.tree.map(lambda x: x[indices], self)


class Proposals(NamedTuple):
    """Draws in the network's space; arrays of one data set have no axis ``rows``."""

    vectors: np.ndarray  # (rows, num_samples, size)
    log_p: np.ndarray  # joint density of the model, (rows, num_samples)
    log_q: np.ndarray  # density of the network

    @property
    def log_weights(self) -> np.ndarray:
        """A draw at which rounding leaves no density has no weight."""
        with np.errstate(invalid="ignore"):
            log_weights = self.log_p - self.log_q
        return np.where(np.isfinite(log_weights), log_weights, -np.inf)


class Proposer:
    """Proposals from networks as trained so far, for as many data sets at a time as there are.

    :param density: of the model, in the networks' space.
    :param num_rows: data sets at a time.
    :param num_samples: draws for each of them.
    """

    def __init__(self, density: VectorDensity, *, num_rows: int, num_samples: int) -> None:
        self.density, self.num_rows, self.num_samples = density, num_rows, num_samples
        self.networks = nnx.split(density.approximator.networks)

    def __call__(self, rng_key: Array, data: DataSets, indices: np.ndarray) -> Proposals:
        """Draws for the data sets of these indices, which may repeat; on the host.

        :param indices: shape ``(n,)``; the last call of the program is filled up.
        """
        num_calls = -(-len(indices) // self.num_rows)
        filled = np.resize(indices, (num_calls, self.num_rows))
        keys = random.split(rng_key, filled.shape)
        program = self.density.program(_propose, static=(0, 2))
        graphdef, state = self.networks
        parts = [
            jax.device_get(program(graphdef, state, self.num_samples, own, data.rows(rows)))
            for own, rows in zip(keys, filled, strict=True)
        ]
        joined = (np.concatenate(x)[: len(indices)] for x in zip(*parts, strict=True))
        return Proposals(*joined)


def _propose(
    density: VectorDensity,
    graphdef: nnx.GraphDef,
    state: nnx.State,
    num_samples: int,
    keys: Array,
    data: DataSets,
) -> tuple[Array, Array, Array]:
    """Vectors, and the log densities of the model and the network."""
    draw = density.approximator.draw_vectors
    vectors, log_q = draw(graphdef, state, num_samples, keys, data.observed)
    each = jax.vmap(density, in_axes=(0, None, None))
    log_p = map_in_chunks(each, (vectors, *data), max(1, ROWS // num_samples))
    return vectors, log_p, log_q
