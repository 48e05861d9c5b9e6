# SPDX-License-Identifier: Apache-2.0
"""The examples run from the command line's entry point."""

from importlib import import_module

import matplotlib.image
import numpy as np
import pytest
import xarray

from examples import quickstart

OTHERS = {
    "hierarchical": (
        "q(mean, spread | all groups)",
        "log odds of 150 hospitals",
        "a further hospital",
    ),
    "black_box": ("learned", "exact", "community"),
    "learned_likelihood": ("learned", "exact", "drift[1]", "override: Adapter"),
    "model_comparison": ("learned", "exact", "varying", "summary network"),
    "time_series": ("amortized", "NUTS", "persistence", "summary network"),
}


def is_a_picture(path):
    picture = matplotlib.image.imread(path)
    return picture.ndim == 3 and picture.std() > 0.01


def test_quickstart(tmp_path, capsys):
    quickstart.main(["--fast", "--output", str(tmp_path / "results")])
    printed = capsys.readouterr().out
    for words in ("amortized", "NUTS", "theta[H]", "difference of", "wrote eight_schools.nc"):
        assert words in printed
    with xarray.open_datatree(tmp_path / "results" / "eight_schools.nc") as tree:
        assert {"posterior", "posterior_predictive", "log_likelihood"} <= set(tree.children)
        assert tree["posterior"]["theta"].dims == ("chain", "draw", "school")
        assert np.isfinite(tree["posterior"]["theta"]).all()
    assert is_a_picture(tmp_path / "results" / "eight_schools.png")


@pytest.mark.verify
@pytest.mark.parametrize("name", OTHERS)
def test_fast(name, tmp_path, capsys):
    import_module(f"examples.{name}").main(["--fast", "--output", str(tmp_path / "results")])
    printed = capsys.readouterr().out
    for words in (*OTHERS[name], f"wrote {name}.png"):
        assert words in printed
    assert is_a_picture(tmp_path / "results" / f"{name}.png")


@pytest.mark.parametrize("name", ["quickstart", *OTHERS])
def test_help(name, capsys):
    with pytest.raises(SystemExit) as stopped:
        import_module(f"examples.{name}").main(["--help"])
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    assert "--fast" in printed and "--output" in printed
