# SPDX-License-Identifier: Apache-2.0
"""Training together beside training alone."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import random

import numpyro_amortized as npa
from tests import models
from tests.approximators.test_ensemble import CONDITIONS
from tests.conftest import FLOW, SETS

pytestmark = pytest.mark.verify


def test_members_learn_as_they_would_alone(unoptimized):
    """From the same initial parameters and without noise in the losses, the same steps."""
    simulator = npa.ModelSimulator(models.normal_mean, np.zeros(4))
    bank = simulator.sample(random.key(5), 64)
    options = {"epochs": 2, "batch_size": 64, "dataset": bank, "validation": 0, "rejuvenation": 0}

    def flows():
        return {
            n: npa.ContinuousApproximator(simulator, inference_network=FLOW, summary_network=SETS)
            for n in ("a", "b")
        }

    start = npa.EnsembleApproximator(flows())
    start.fit(random.key(0), **options, progress_bar=False)
    alone = flows()["a"]
    alone.restore(lambda _: nnx.clone(start.members["a"].modules))
    start.fit(random.key(2), **options, progress_bar=False)
    alone.fit(random.key(2), **options, progress_bar=False)
    data = {"mu": jnp.array([0.1, -0.3]), **CONDITIONS}
    together, by_itself = start.members["a"].log_prob(data), alone.log_prob(data)
    np.testing.assert_allclose(together, by_itself, rtol=1e-3, atol=1e-3)
    assert np.abs(together - start.members["b"].log_prob(data)).max() > 1e-2
