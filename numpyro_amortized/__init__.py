# SPDX-License-Identifier: Apache-2.0
"""Amortized Bayesian inference for NumPyro models."""

from numpyro_amortized import networks
from numpyro_amortized.adapters.adapter import Adapter
from numpyro_amortized.adapters.augmentations import (
    Noise,
    RandomMissing,
    RandomSubsample,
    augment,
)
from numpyro_amortized.approximators.amortize import amortize
from numpyro_amortized.approximators.continuous import ContinuousApproximator
from numpyro_amortized.augmented import AugmentedDataset
from numpyro_amortized.datasets import OfflineDataset, OnlineDataset
from numpyro_amortized.disk import DiskDataset
from numpyro_amortized.distributions import AmortizedPosterior
from numpyro_amortized.guide import AmortizedGuide
from numpyro_amortized.importance import ImportanceResult, importance_sample
from numpyro_amortized.simulators.base import Simulator
from numpyro_amortized.simulators.branches import Branches, split_branches
from numpyro_amortized.simulators.comparison import ModelComparisonSimulator
from numpyro_amortized.simulators.functions import LambdaSimulator
from numpyro_amortized.simulators.model import ModelSimulator
from numpyro_amortized.simulators.sequential import SequentialSimulator, make_simulator
from numpyro_amortized.simulators.tracing import Site
from numpyro_amortized.streamed import HostDataset
from numpyro_amortized.training import History

__version__ = "0.1.0"

__all__ = [
    "Adapter",
    "AmortizedGuide",
    "AmortizedPosterior",
    "AugmentedDataset",
    "Branches",
    "ContinuousApproximator",
    "DiskDataset",
    "History",
    "HostDataset",
    "ImportanceResult",
    "LambdaSimulator",
    "ModelComparisonSimulator",
    "ModelSimulator",
    "Noise",
    "OfflineDataset",
    "OnlineDataset",
    "RandomMissing",
    "RandomSubsample",
    "SequentialSimulator",
    "Simulator",
    "Site",
    "amortize",
    "augment",
    "importance_sample",
    "make_simulator",
    "networks",
    "split_branches",
]
