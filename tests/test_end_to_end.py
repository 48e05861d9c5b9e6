# SPDX-License-Identifier: Apache-2.0
"""The examples run from the command line's entry point."""

import matplotlib.image
import numpy as np
import pytest
import xarray

from examples import hierarchical, quickstart


def test_quickstart(tmp_path, capsys, unoptimized):
    quickstart.main(["--fast", "--output", str(tmp_path / "results")])
    printed = capsys.readouterr().out
    for words in ("amortized", "NUTS", "theta[H]", "difference of", "wrote eight_schools.nc"):
        assert words in printed
    with xarray.open_datatree(tmp_path / "results" / "eight_schools.nc") as tree:
        assert {"posterior", "posterior_predictive", "log_likelihood"} <= set(tree.children)
        assert tree["posterior"]["theta"].dims == ("chain", "draw", "school")
        assert np.isfinite(tree["posterior"]["theta"]).all()
    picture = matplotlib.image.imread(tmp_path / "results" / "eight_schools.png")
    assert picture.ndim == 3 and picture.std() > 0.01


@pytest.mark.verify
def test_hierarchical(tmp_path, capsys):
    hierarchical.main(["--fast", "--output", str(tmp_path / "results")])
    printed = capsys.readouterr().out
    for words in (
        "q(mean, spread | all groups)",
        "log odds of 150 hospitals",
        "a further hospital",
    ):
        assert words in printed
    picture = matplotlib.image.imread(tmp_path / "results" / "hospitals.png")
    assert picture.ndim == 3 and picture.std() > 0.01
