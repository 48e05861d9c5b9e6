# SPDX-License-Identifier: Apache-2.0
"""Whether data are unlike what the networks have seen, by the distance of their encoding."""

from typing import TYPE_CHECKING, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax import Array

from numpyro_amortized.diagnostics.misspecification import mahalanobis
from numpyro_amortized.simulators.model import ModelSimulator

if TYPE_CHECKING:
    from numpyro_amortized.approximators.density import DensityApproximator

__all__ = ["Unusual", "compare_with_prior"]

_NUM_SIMULATIONS = 1000


class Unusual(NamedTuple):
    """How unusual data sets are, and what simulations they were compared with."""

    distance: np.ndarray  # Mahalanobis distance of each data set, (num_datasets,)
    p_value: np.ndarray  # share of simulations that are as far away
    dispersed: np.ndarray  # latents of the simulations in the networks' space, (num, size)


def compare_with_prior(
    rng_key: Array, approximator: "DensityApproximator", observed: dict[str, Array]
) -> Unusual:
    """Compare the encoding of data sets with those of some 1,000 prior-predictive simulations.

    :param rng_key: a key.
    :param approximator: trained, of a model.
    :param observed: the data sets as the networks see them.
    """
    source = approximator.source
    assert isinstance(source, ModelSimulator)
    graphdef, state = nnx.split(approximator.networks)
    encoded = np.asarray(approximator.encode(graphdef, state, observed))
    num_simulations = max(_NUM_SIMULATIONS, 4 * (encoded.shape[1] + 2))
    draws = source.sample(rng_key, num_simulations)
    simulated = {name: draws[name] for name in observed}
    known = np.asarray(approximator.encode(graphdef, state, simulated))
    latents = {name: draws[name] for name in approximator.inferred_sites}
    vectors = jax.device_get(approximator.to_vectors(latents, simulated))
    sound = np.isfinite(known).all(1)
    found = mahalanobis(known[sound], encoded)
    finite = vectors[np.isfinite(vectors).all(1)]
    dispersed = np.resize(finite, vectors.shape)  # of one shape, for one program
    return Unusual(found["distance"].values, found["p_value"].values, dispersed)
