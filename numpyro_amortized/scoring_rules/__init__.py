# SPDX-License-Identifier: Apache-2.0
"""Scoring rules: losses whose minimisers are functionals of the posterior, or all of it."""

from numpyro_amortized.scoring_rules.base import ParametricRule, ScoringRule
from numpyro_amortized.scoring_rules.categorical import BrierScore, CrossEntropy
from numpyro_amortized.scoring_rules.parametric import GaussianMixture, MultivariateNormal
from numpyro_amortized.scoring_rules.points import Mean, Median, NormedDifference, Quantiles
from numpyro_amortized.scoring_rules.samples import CRPS, EnergyScore

__all__ = [
    "CRPS",
    "BrierScore",
    "CrossEntropy",
    "EnergyScore",
    "GaussianMixture",
    "Mean",
    "Median",
    "MultivariateNormal",
    "NormedDifference",
    "ParametricRule",
    "Quantiles",
    "ScoringRule",
]
