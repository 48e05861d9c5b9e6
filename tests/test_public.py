# SPDX-License-Identifier: Apache-2.0
"""The public names."""

from pathlib import Path
from types import ModuleType

import pytest

import numpyro_amortized as npa

MODULES = [npa, npa.networks, npa.diagnostics, npa.scoring_rules]


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_all_public_names_are_listed(module):
    assert len(set(module.__all__)) == len(module.__all__)
    own = {
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and not (isinstance(value, ModuleType) and value not in MODULES)
        and getattr(value, "__module__", "numpyro_amortized").startswith("numpyro_amortized")
    }
    assert set(module.__all__) == own


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_all_public_names_are_documented(module):
    assert [name for name in module.__all__ if not getattr(module, name).__doc__] == []


def test_types_are_public():
    assert (Path(npa.__file__).parent / "py.typed").exists()
