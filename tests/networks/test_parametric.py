# SPDX-License-Identifier: Apache-2.0
"""Densities of a parametric family."""

from functools import partial

import jax
import numpy as np
import pytest
from flax import nnx

from numpyro_amortized.networks import MLP, Parametric
from numpyro_amortized.scoring_rules import GaussianMixture
from tests.networks import laws


@pytest.mark.verify
def test_context_broadcasts():
    subnet = partial(MLP, widths=(8,))
    network = Parametric(2, 3, rule=GaussianMixture(3), subnet=subnet, rngs=nnx.Rngs(0))
    x, contexts = laws.check_context_broadcasts(jax.jit(network.log_prob), 3)
    losses = network.loss(jax.random.key(0), x, contexts)
    np.testing.assert_allclose(losses, -network.log_prob(x, contexts), rtol=1e-5)
