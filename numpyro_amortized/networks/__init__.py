# SPDX-License-Identifier: Apache-2.0
"""Inference networks, summary networks and their parts."""

from numpyro_amortized.networks.affine import Affine
from numpyro_amortized.networks.base import DensityNetwork, InferenceNetwork
from numpyro_amortized.networks.continuous_flow import ContinuousFlow
from numpyro_amortized.networks.convolution import Convolution
from numpyro_amortized.networks.coupling_flow import CouplingFlow
from numpyro_amortized.networks.deep_set import DeepSet
from numpyro_amortized.networks.diffusion import DiffusionModel
from numpyro_amortized.networks.flow_matching import FlowMatching, OptimalTransport
from numpyro_amortized.networks.fusion import Fusion
from numpyro_amortized.networks.gru import GRU
from numpyro_amortized.networks.hierarchical import GroupSummary, Hierarchical
from numpyro_amortized.networks.mixed import Categorical, Discretized, Mixed
from numpyro_amortized.networks.mlp import MLP
from numpyro_amortized.networks.ode import Adaptive, FixedStep
from numpyro_amortized.networks.parametric import Parametric
from numpyro_amortized.networks.residual_mlp import ResidualMLP
from numpyro_amortized.networks.set_transformer import SetTransformer
from numpyro_amortized.networks.splines import Spline
from numpyro_amortized.networks.summary_regularizer import mmd_to_normal
from numpyro_amortized.networks.time_embeddings import Sinusoidal, Time2Vec
from numpyro_amortized.networks.time_series_transformer import TimeSeriesTransformer

__all__ = [
    "GRU",
    "MLP",
    "Adaptive",
    "Affine",
    "Categorical",
    "ContinuousFlow",
    "Convolution",
    "CouplingFlow",
    "DeepSet",
    "DensityNetwork",
    "DiffusionModel",
    "Discretized",
    "FixedStep",
    "FlowMatching",
    "Fusion",
    "GroupSummary",
    "Hierarchical",
    "InferenceNetwork",
    "Mixed",
    "OptimalTransport",
    "Parametric",
    "ResidualMLP",
    "SetTransformer",
    "Sinusoidal",
    "Spline",
    "Time2Vec",
    "TimeSeriesTransformer",
    "mmd_to_normal",
]
