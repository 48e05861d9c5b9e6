# SPDX-License-Identifier: Apache-2.0
"""Classifier two-sample test by the protocol of the simulation-based inference benchmark."""

from numpyro_amortized.diagnostics import c2st

__all__ = ["c2st"]
