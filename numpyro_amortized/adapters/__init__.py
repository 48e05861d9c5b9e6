# SPDX-License-Identifier: Apache-2.0
"""Adapters: the values of sites to the inputs of networks, and back."""

from numpyro_amortized.adapters.adapter import Adapter
from numpyro_amortized.adapters.base import Bijection, Transform

__all__ = ["Adapter", "Bijection", "Transform"]
