# SPDX-License-Identifier: Apache-2.0
"""Simulators: joint draws of latent and observed sites, from NumPyro models."""

from numpyro_amortized.simulators.base import Simulator
from numpyro_amortized.simulators.model import ModelSimulator
from numpyro_amortized.simulators.tracing import Site, has_bijection

__all__ = ["ModelSimulator", "Simulator", "Site", "has_bijection"]
