# SPDX-License-Identifier: Apache-2.0
"""Draws from right and wrong posteriors, made once."""

import pytest
from jax import random

from numpyro_amortized.diagnostics import posterior_draws
from tests.diagnostics.exact import NormalMean


@pytest.fixture(scope="session")
def right():
    return posterior_draws(random.key(0), NormalMean(), num_datasets=1000)


@pytest.fixture(scope="session")
def narrow():
    return posterior_draws(random.key(0), NormalMean(scale=0.7), num_datasets=1000)
