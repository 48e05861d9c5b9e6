# SPDX-License-Identifier: Apache-2.0
"""Posteriors that no network was needed for, right or wrong on purpose."""

from types import SimpleNamespace
from typing import final

import jax.numpy as jnp
import numpy as np
from jax import random

import numpyro_amortized as npa
from tests import models


@final
class NormalMean:
    """Draws for :func:`models.normal_mean`: exact, or with another mean or standard deviation.

    :param scale: of the standard deviation.
    :param shift: of the mean, in standard deviations.
    :param ignores_data: draws from the prior instead.
    """

    def __init__(self, *, scale=1.0, shift=0.0, ignores_data=False):
        self.source = npa.ModelSimulator(models.normal_mean, np.zeros(10))
        self.adapter = npa.Adapter.for_posterior(self.source)
        self.sites = self.source.sites
        self.inferred_sites = ("mu",)
        self._scale, self._shift, self._ignores_data = scale, shift, ignores_data

    def sample(self, rng_key, num_samples, conditions, *, batch_size=None):
        y = jnp.asarray(conditions["y"])
        noise = random.normal(rng_key, (len(y), num_samples))
        if self._ignores_data:
            return {"mu": noise}
        mean, sd = models.normal_mean_posterior(y)
        return {"mu": mean[:, None] + sd * (self._shift + self._scale * noise)}

    def posterior(self, conditions):
        """Its context is the summary of a data set, the sample mean."""
        return SimpleNamespace(context=jnp.asarray(conditions["y"]).mean(-1, keepdims=True))
