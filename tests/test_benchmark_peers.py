# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks give to other packages, and the picture of what they find."""

import numpy as np

from benchmarks.accuracy import picture, summarize
from benchmarks.peers import bounds
from benchmarks.tasks import TASKS


def test_bounds_are_those_of_the_priors():
    np.testing.assert_array_equal(bounds(TASKS["slcp"]), [[-3.0] * 5, [3.0] * 5])
    np.testing.assert_array_equal(bounds(TASKS["sir"]), [[0.0] * 2, [np.inf] * 2])
    np.testing.assert_array_equal(bounds(TASKS["gaussian_linear"])[1], [np.inf] * 10)


def test_picture_shows_median_and_worst_of_the_seeds():
    measured = ("fit_seconds", "first_draws_seconds", "second_draws_seconds", "memory_gib")
    row = {"task": "sir", "network": "CouplingFlow", "online": False} | dict.fromkeys(measured, 1.0)
    summary = summarize([row | {"mean_c2st": score} for score in (0.6, 0.55, 0.58)])
    [axes] = picture([summary]).axes
    [points, exact] = axes.get_lines()
    [line] = axes.collections
    np.testing.assert_allclose(points.get_ydata(), [0.58])
    np.testing.assert_allclose(exact.get_ydata(), [0.5, 0.5])
    np.testing.assert_allclose(line.get_segments()[0][:, 1], [0.58, 0.6])
