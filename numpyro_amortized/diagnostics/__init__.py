# SPDX-License-Identifier: Apache-2.0
"""Whether an approximator may be trusted: checks by simulation, as functions of arrays."""

from numpyro_amortized.diagnostics.calibration import pit_values, simulation_based_calibration
from numpyro_amortized.diagnostics.simulated import PosteriorDraws, posterior_draws
from numpyro_amortized.diagnostics.uniformity import holm, uniformity_test

__all__ = [
    "PosteriorDraws",
    "holm",
    "pit_values",
    "posterior_draws",
    "simulation_based_calibration",
    "uniformity_test",
]
