# SPDX-License-Identifier: Apache-2.0
"""Whether an approximator may be trusted: checks by simulation, as functions of arrays."""

from numpyro_amortized.diagnostics.calibration import pit_values, simulation_based_calibration
from numpyro_amortized.diagnostics.comparison import (
    bayes_factors,
    classifier_calibration,
    confusion_matrix,
)
from numpyro_amortized.diagnostics.coverage import (
    central_interval,
    coverage,
    highest_density_interval,
    tarp,
)
from numpyro_amortized.diagnostics.misspecification import (
    mahalanobis,
    misspecification,
    summaries,
    summary_mmd,
)
from numpyro_amortized.diagnostics.page import Check, Picture
from numpyro_amortized.diagnostics.plots import (
    loss,
    plot_bayes_factors,
    plot_calibration,
    plot_classifier_calibration,
    plot_confusion_matrix,
    plot_contraction,
    plot_coverage,
    plot_misspecification,
    plot_pareto_k,
    plot_recovery,
)
from numpyro_amortized.diagnostics.recovery import contraction, recovery
from numpyro_amortized.diagnostics.report import Report, report
from numpyro_amortized.diagnostics.simulated import PosteriorDraws, posterior_draws
from numpyro_amortized.diagnostics.two_sample import c2st, mmd
from numpyro_amortized.diagnostics.uniformity import holm, uniformity_test
from numpyro_amortized.diagnostics.weights import importance_weights

__all__ = [
    "Check",
    "Picture",
    "PosteriorDraws",
    "Report",
    "bayes_factors",
    "c2st",
    "central_interval",
    "classifier_calibration",
    "confusion_matrix",
    "contraction",
    "coverage",
    "highest_density_interval",
    "holm",
    "importance_weights",
    "loss",
    "mahalanobis",
    "misspecification",
    "mmd",
    "pit_values",
    "plot_bayes_factors",
    "plot_calibration",
    "plot_classifier_calibration",
    "plot_confusion_matrix",
    "plot_contraction",
    "plot_coverage",
    "plot_misspecification",
    "plot_pareto_k",
    "plot_recovery",
    "posterior_draws",
    "recovery",
    "report",
    "simulation_based_calibration",
    "summaries",
    "summary_mmd",
    "tarp",
    "uniformity_test",
]
