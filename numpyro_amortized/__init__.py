# SPDX-License-Identifier: Apache-2.0
"""Amortized Bayesian inference for NumPyro models."""

from numpyro_amortized import networks
from numpyro_amortized.adapters.adapter import Adapter
from numpyro_amortized.approximators.amortize import amortize
from numpyro_amortized.approximators.continuous import ContinuousApproximator
from numpyro_amortized.datasets import OfflineDataset, OnlineDataset
from numpyro_amortized.distributions import AmortizedPosterior
from numpyro_amortized.simulators.base import Simulator
from numpyro_amortized.simulators.model import ModelSimulator
from numpyro_amortized.simulators.tracing import Site
from numpyro_amortized.training import History

__version__ = "0.1.0"

__all__ = [
    "Adapter",
    "AmortizedPosterior",
    "ContinuousApproximator",
    "History",
    "ModelSimulator",
    "OfflineDataset",
    "OnlineDataset",
    "Simulator",
    "Site",
    "amortize",
    "networks",
]
