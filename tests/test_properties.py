# SPDX-License-Identifier: Apache-2.0
"""What holds of any model: it trains, or is refused for a cause that the docs list.

The share of models that are refused, and why, is printed by
``pytest tests/test_properties.py -m verify --hypothesis-show-statistics``.
"""

import re
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, event, given, settings
from jax import random

import numpyro_amortized as npa
from tests.conftest import AFFINE
from tests.random_models import FAULTS, Spec, specs

DOCS = (Path(__file__).parents[1] / "docs" / "models.md").read_text()
LISTED = re.findall(
    r"^\| [^|]* \| `([^`]*)` \|", DOCS.partition("## What is refused")[2], re.MULTILINE
)
QUICK = settings(
    max_examples=1,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


def test_the_docs_list_all_causes():
    assert {cause for cause, _ in FAULTS.values()} <= set(LISTED)


@QUICK
@given(specs())
def test_a_model(spec):
    check(spec)


@pytest.mark.verify
@settings(QUICK, max_examples=60, phases=list(Phase), derandomize=False)
@given(specs())
def test_many_models(spec):
    check(spec)


def check(spec: Spec) -> None:
    """A model trains and round-trips, unless there is a reason to refuse it."""
    model = partial(spec.model, spec.data)
    try:
        approximator = npa.ContinuousApproximator(model, inference_network=AFFINE)
    except (ValueError, TypeError, NotImplementedError) as error:
        [cause, *_] = [cause for cause in LISTED if cause in str(error)] or [None]
        event(f"refused: {cause}")
        assert cause in spec.reasons, error
        return
    event("trained")
    assert not spec.reasons
    draws = approximator.source.sample(random.key(0), 8)
    check_simulations(spec, approximator, draws)
    check_round_trip(approximator, draws)
    check_training(spec, approximator, draws)


def check_simulations(spec, approximator, draws):
    """Shapes are those of the data, types are the model's, not those of the data."""
    assert set(draws) >= set(spec.data)
    for name, data in spec.data.items():
        assert draws[name].shape == (8, *data.shape) and jnp.isfinite(draws[name]).all()
        assert draws[name].dtype == approximator.sites[name].dtype


def check_round_trip(approximator, draws):
    """To the network's space and back."""
    adapter = approximator.adapter
    values = {name: draws[name] for name in draws if name != "total"}

    def there_and_back(row):
        inputs = adapter.forward(row)
        return adapter.inverse(inputs), adapter.log_det_jac(row)

    back, log_det = jax.jit(jax.vmap(there_and_back))(values)
    assert jnp.isfinite(log_det).all()
    for name in approximator.inferred_sites:
        scale = np.std(draws[name]) + 1e-3
        np.testing.assert_allclose(back[name], draws[name], rtol=1e-3, atol=1e-3 * scale)


def check_training(spec, approximator, draws):
    """A step, and draws and densities of the simulations and of the data as they were given."""
    options = {"epochs": 1, "num_batches": 1, "batch_size": 8, "validation": 0}
    history = approximator.fit(random.key(1), progress_bar=False, **options)
    assert np.isfinite(history.loss).all()
    sites, names = approximator.sites, approximator.inferred_sites
    observed = {name: draws[name] for name in spec.data}
    log_prob = approximator.log_prob({name: draws[name] for name in names} | observed)
    assert log_prob.shape == (8,) and jnp.isfinite(log_prob).all()
    for data in (spec.data, {name: value.tolist() for name, value in spec.data.items()}):
        posterior = approximator.sample(random.key(2), 2, data)
        for name in names:
            assert posterior[name].shape == (2, *sites[name].shape)
            assert posterior[name].dtype == draws[name].dtype
