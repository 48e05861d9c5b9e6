# SPDX-License-Identifier: Apache-2.0
"""Two-sample tests."""

import sys

import numpy as np
import pytest
from jax import random

from numpyro_amortized.diagnostics import c2st, mmd

RNG = np.random.default_rng(0)
NORMAL, OTHER = RNG.normal(size=(2, 200, 2))


def test_mmd_by_hand():
    result = mmd(random.key(0), [[0.0]], [[2.0], [3.0]], bandwidth=1.0, num_permutations=2)
    k = {d: np.exp(-(d**2) / 2) for d in (1, 2, 3)}
    expected = 1 - (k[2] + k[3]) + (2 + 2 * k[1]) / 4
    np.testing.assert_allclose(result["mmd"], np.sqrt(expected), rtol=1e-5)
    # by default, the median of the distances 1, 2, 3
    k = {d: np.exp(-(d**2) / 8) for d in (1, 2, 3)}
    expected = 1 - (k[2] + k[3]) + (2 + 2 * k[1]) / 4
    default = mmd(random.key(0), [[0.0]], [[2.0], [3.0]], num_permutations=2)
    np.testing.assert_allclose(default["mmd"], np.sqrt(expected), rtol=1e-5)


def test_mmd_tells_distributions_apart():
    same = mmd(random.key(0), NORMAL, OTHER)
    assert same["p_value"] > 0.01 and same["null"].sizes == {"permutation": 500}
    wider = mmd(random.key(0), NORMAL, 2 * OTHER)
    assert float(wider["p_value"]) == pytest.approx(1 / 501)


@pytest.mark.verify
def test_p_values_of_mmd_are_uniform():
    """At the level of 10 %, in 100 tests: three standard errors of .03."""
    draws = RNG.normal(size=(100, 2, 30, 1))
    p_values = [mmd(random.key(1), *pair, num_permutations=99)["p_value"] for pair in draws]
    assert abs(np.mean(np.array(p_values) <= 0.1) - 0.1) < 0.09


@pytest.mark.verify
def test_c2st_tells_distributions_apart():
    assert abs(c2st(NORMAL, OTHER) - 0.5) < 3 * 0.5 / np.sqrt(400)
    assert c2st(NORMAL, OTHER + 10) > 0.99


def test_c2st_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.model_selection", None)
    with pytest.raises(ImportError, match=r"numpyro_amortized\[c2st\]"):
        c2st(NORMAL, OTHER)


def test_errors():
    with pytest.raises(ValueError, match="c2st: expected two arrays of one shape"):
        c2st(NORMAL, OTHER[1:])
    with pytest.raises(ValueError, match="mmd: expected two arrays"):
        mmd(random.key(0), NORMAL, OTHER[:, 0])
    with pytest.raises(ValueError, match="num_permutations: expected a positive integer"):
        mmd(random.key(0), NORMAL, OTHER, num_permutations=0)
