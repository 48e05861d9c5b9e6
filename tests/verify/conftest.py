# SPDX-License-Identifier: Apache-2.0
"""References that several long checks compare with."""

import jax
import numpy as np
import pytest
from jax import random
from numpyro.diagnostics import effective_sample_size, gelman_rubin

from examples import quickstart


@pytest.fixture(scope="session")
def eight_schools_by_nuts():
    """Draws of the non-centred model, by the labels of the quickstart."""
    mcmc = quickstart.nuts(random.key(1), num_samples=5000)
    grouped = mcmc.get_samples(group_by_chain=True)
    for name in ("mu", "tau", "theta"):
        assert np.max(gelman_rubin(np.asarray(grouped[name]))) < 1.01
        assert np.min(effective_sample_size(np.asarray(grouped[name]))) > 4000
    assert not mcmc.get_extra_fields()["diverging"].any()
    return quickstart.columns(mcmc.get_samples())


@pytest.fixture
def unoptimized():
    """For a test that compiles much and runs little."""
    jax.config.update("jax_disable_most_optimizations", True)
