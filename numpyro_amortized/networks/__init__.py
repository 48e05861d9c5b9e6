# SPDX-License-Identifier: Apache-2.0
"""Inference networks, summary networks and their parts."""

from numpyro_amortized.networks.affine import Affine
from numpyro_amortized.networks.base import DensityNetwork, InferenceNetwork
from numpyro_amortized.networks.coupling_flow import CouplingFlow
from numpyro_amortized.networks.deep_set import DeepSet
from numpyro_amortized.networks.mlp import MLP
from numpyro_amortized.networks.splines import Spline

__all__ = [
    "MLP",
    "Affine",
    "CouplingFlow",
    "DeepSet",
    "DensityNetwork",
    "InferenceNetwork",
    "Spline",
]
