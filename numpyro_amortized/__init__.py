# SPDX-License-Identifier: Apache-2.0
"""Amortized Bayesian inference for NumPyro models."""

from numpyro_amortized import diagnostics, networks, scoring_rules
from numpyro_amortized.adapters.adapter import Adapter
from numpyro_amortized.adapters.augmentations import (
    Noise,
    RandomMissing,
    RandomSubsample,
    augment,
)
from numpyro_amortized.approximators.amortize import amortize
from numpyro_amortized.approximators.compositional import CompositionalApproximator
from numpyro_amortized.approximators.continuous import ContinuousApproximator
from numpyro_amortized.approximators.ensemble import EnsembleApproximator
from numpyro_amortized.approximators.model_comparison import ModelComparisonApproximator
from numpyro_amortized.approximators.ratio import RatioApproximator
from numpyro_amortized.approximators.scoring_rule import ScoringRuleApproximator
from numpyro_amortized.approximators.self_consistency import SelfConsistency
from numpyro_amortized.augmented import AugmentedDataset
from numpyro_amortized.bank import DamagedChunkError
from numpyro_amortized.datasets import OfflineDataset, OnlineDataset
from numpyro_amortized.disk import DiskDataset
from numpyro_amortized.distributions import AmortizedPosterior
from numpyro_amortized.guide import AmortizedGuide
from numpyro_amortized.importance import ImportanceResult, importance_sample
from numpyro_amortized.likelihood import NeuralLikelihood
from numpyro_amortized.refine import refine
from numpyro_amortized.saving import load
from numpyro_amortized.simulators.base import Simulator, TraceableSimulator
from numpyro_amortized.simulators.branches import Branches, split_branches
from numpyro_amortized.simulators.comparison import ModelComparisonSimulator
from numpyro_amortized.simulators.functions import LambdaSimulator
from numpyro_amortized.simulators.model import ModelSimulator
from numpyro_amortized.simulators.sequential import SequentialSimulator, make_simulator
from numpyro_amortized.simulators.tracing import Site
from numpyro_amortized.streamed import HostDataset, StreamedDataset
from numpyro_amortized.training import History

__version__ = "0.1.0"

__all__ = [
    "Adapter",
    "AmortizedGuide",
    "AmortizedPosterior",
    "AugmentedDataset",
    "Branches",
    "CompositionalApproximator",
    "ContinuousApproximator",
    "DamagedChunkError",
    "DiskDataset",
    "EnsembleApproximator",
    "History",
    "HostDataset",
    "ImportanceResult",
    "LambdaSimulator",
    "ModelComparisonApproximator",
    "ModelComparisonSimulator",
    "ModelSimulator",
    "NeuralLikelihood",
    "Noise",
    "OfflineDataset",
    "OnlineDataset",
    "RandomMissing",
    "RandomSubsample",
    "RatioApproximator",
    "ScoringRuleApproximator",
    "SelfConsistency",
    "SequentialSimulator",
    "Simulator",
    "Site",
    "StreamedDataset",
    "TraceableSimulator",
    "amortize",
    "augment",
    "diagnostics",
    "importance_sample",
    "load",
    "make_simulator",
    "networks",
    "refine",
    "scoring_rules",
    "split_branches",
]
