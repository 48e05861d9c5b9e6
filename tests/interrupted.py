# SPDX-License-Identifier: Apache-2.0
"""A training run that may be killed at any moment: ``python -m tests.interrupted directory``."""

import sys

import jax
import numpy as np
from flax import nnx
from jax import random

import numpyro_amortized as npa
from numpyro_amortized import checkpoints
from tests import models
from tests.conftest import AFFINE, SETS

NUM_MEMBERS = 4
OPTIONS = {"epochs": 25, "num_batches": 4, "batch_size": 16, "progress_bar": False}


def untrained():
    simulator = npa.ModelSimulator(models.normal_mean, np.zeros(NUM_MEMBERS))
    options = {"inference_network": AFFINE, "summary_network": SETS}
    return npa.ContinuousApproximator(simulator, **options)


def parameters(approximator):
    return jax.tree.leaves(nnx.state(approximator.modules, nnx.Param))


def fit(directory=None, approximator=None):
    """A bank whose latents move, so that there is more to keep than parameters."""
    approximator = untrained() if approximator is None else approximator
    bank = approximator.source.sample(random.key(9), 100)
    approximator.fit(random.key(0), dataset=bank, checkpoint_dir=directory, **OPTIONS)
    return approximator


def main():
    jax.config.update("jax_disable_most_optimizations", True)
    checkpoints._COST = 0  # a checkpoint after every epoch: being killed while writing is likely
    fit(sys.argv[1])


if __name__ == "__main__":
    main()
