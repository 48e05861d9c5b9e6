# SPDX-License-Identifier: Apache-2.0
"""From a model to its approximator in one call."""

from collections.abc import Callable
from typing import Any

from numpyro_amortized.approximators.continuous import ContinuousApproximator
from numpyro_amortized.simulators.model import ModelSimulator


def amortize(model: Callable[..., Any], *args: Any, **kwargs: Any) -> ContinuousApproximator:
    """An approximator of the model's posterior with every default derived from the model.

    :param model: a NumPyro model.
    :param args: its arguments, data included, as for :class:`numpyro.infer.MCMC`.
    :param kwargs: its keyword arguments.
    :return: an approximator, to be trained by ``fit``; printing it explains each decision.
    :raises ValueError: where the model cannot be amortized, with the reason and what to do.

    **Example**

    .. doctest::

        >>> import numpyro, numpyro.distributions as dist
        >>> from jax import numpy as jnp
        >>> import numpyro_amortized as npa
        >>> def model(y):
        ...     mu = numpyro.sample("mu", dist.Normal(0, 1))
        ...     with numpyro.plate("N", 5):
        ...         numpyro.sample("y", dist.Normal(mu, 1), obs=y)
        >>> npa.amortize(model, jnp.zeros(5)).inferred_sites
        ('mu',)
    """
    return ContinuousApproximator(ModelSimulator(model, *args, **kwargs))
