# SPDX-License-Identifier: Apache-2.0
"""Approximators: networks trained on simulations to stand for a distribution."""

from numpyro_amortized.approximators.amortize import amortize
from numpyro_amortized.approximators.base import Approximator
from numpyro_amortized.approximators.continuous import ContinuousApproximator

__all__ = ["Approximator", "ContinuousApproximator", "amortize"]
