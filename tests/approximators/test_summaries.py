# SPDX-License-Identifier: Apache-2.0
"""Networks that summarize the data: defaults, overrides, regularization, training."""

from functools import cache, partial

import numpy as np
import pytest
from flax import nnx
from jax import numpy as jnp
from jax import random

import numpyro_amortized as npa
from numpyro_amortized import networks
from tests import models
from tests.conftest import FLOW

CASES = {
    "set": (models.normal_mean, np.zeros(4)),
    "series": (models.markov, np.zeros(20)),
    "image": (models.picture, np.zeros((8, 8))),
    "three": (models.three_sites, np.zeros(5), np.zeros(20), np.zeros((8, 8))),
    "numbers": (models.bounded_pair, 0.0),
}
SMALL = {
    "survey": partial(networks.DeepSet, summary_size=4, widths=(16,), embedding_size=8),
    "series": partial(networks.GRU, summary_size=4, width=8),
    "image": partial(
        networks.Convolution, summary_size=4, num_spatial_dims=2, widths=(8, 8), depth=1
    ),
}


@cache
def source_of(case):
    """The simulator and its adapter."""
    simulator = npa.ModelSimulator(*CASES[case])
    return simulator, npa.Adapter.for_posterior(simulator)


def approximator_of(case, **options):
    simulator, adapter = source_of(case)
    return npa.ContinuousApproximator(simulator, adapter=adapter, inference_network=FLOW, **options)


@pytest.mark.parametrize(
    "case, network, lines",
    [
        (
            "set",
            networks.DeepSet,
            ["DeepSet, the default for a set"],
        ),
        ("series", networks.GRU, ["GRU(kernel_size=3), the default for a time series"]),
        (
            "image",
            networks.Convolution,
            ["Convolution(num_spatial_dims=2), the default for an image"],
        ),
        pytest.param(
            "three",
            networks.Fusion,
            [
                "summary network: Fusion of",
                "survey: DeepSet, the default for a set",
                "series: GRU(kernel_size=3), the default for a time series",
                "image: Convolution(num_spatial_dims=2), the default for an image",
            ],
            marks=pytest.mark.verify,
        ),
    ],
)
def test_default_networks_are_printed(case, network, lines):
    approximator = approximator_of(case)
    text = str(approximator)
    assert all(line in text for line in [*lines, "summary_network=..."])
    spec = approximator.summary_network
    assert (spec.func if isinstance(spec, partial) else spec) is network


def test_networks_for_some_of_the_sites():
    approximator = approximator_of("three", summary_network=SMALL | {"series": networks.GRU})
    assert "series: GRU, as you said" in str(approximator)
    approximator = approximator_of("three", summary_network={"image": SMALL["image"]})
    assert "image: Convolution(summary_size=4, " in str(approximator)
    assert "series: GRU(kernel_size=3), the default for a time series" in str(approximator)
    with pytest.raises(ValueError, match=r"expected networks of \['image', .*got one of \['y'\]"):
        str(approximator_of("three", summary_network={"y": networks.GRU}))
    one = approximator_of("series", summary_network={"y": networks.Convolution})
    assert one.summary_network is networks.Convolution


@pytest.mark.verify
def test_one_network_of_all_sites():
    class Means(nnx.Module):
        """Of each site."""

        summary_size = 3

        def __call__(self, x, masks=None):
            axes = {"survey": (-2, -1), "series": (-2, -1), "image": (-3, -2, -1)}
            return jnp.stack([x[name].mean(axes[name]) for name in sorted(x)], axis=-1)

    approximator = approximator_of("three", summary_network=Means())
    approximator.fit(random.key(0), epochs=1, num_batches=2, validation=0, progress_bar=False)
    assert "summary network: Means, as you said" in str(approximator)
    assert approximator.log_prob(_row(approximator)).shape == ()


def _row(approximator):
    return approximator.source.sample(random.key(1), ())


def exact_three_sites(data):
    """Posterior means of ``mu`` given the survey alone, and given the survey and the series."""
    survey, series = (np.asarray(data[n], float) for n in ("survey", "series"))
    mu, rho = np.linspace(-4, 4, 161), np.linspace(-1, 1, 101)[1:-1]
    before = np.concatenate([[0], series[:-1]])
    errors = series - rho[:, None, None] * before - 0.3 * mu[:, None]
    of_survey = -(mu**2) / 2 - ((survey - mu[:, None]) ** 2).sum(-1) / 8
    both = of_survey + np.log(np.exp(-(errors**2).sum(-1) / 2 + 30).sum(0))
    return [np.average(mu, weights=np.exp(x - x.max())) for x in (of_survey, both)]


@pytest.fixture(scope="module")
def three():
    """Trained for seconds, from a bank, which then holds dicts of arrays."""
    approximator = approximator_of("three", summary_network=SMALL)
    bank = approximator.source.sample(random.key(3), 6000)
    approximator.fit(
        random.key(0), dataset=bank, epochs=8, batch_size=128, rejuvenation=0, progress_bar=False
    )
    return approximator


@pytest.mark.verify
def test_all_sites_are_learnt_from(three):
    data = three.source.sample(random.key(1), 200)
    conditions = {n: data[n] for n in ("survey", "series", "image")}
    draws = np.asarray(three.sample(random.key(2), 100, conditions)["mu"])
    rows = [{n: x[i] for n, x in conditions.items()} for i in range(200)]
    exact = np.array([exact_three_sites(row) for row in rows])
    truth = np.asarray(data["mu"])
    error = np.mean((draws.mean(1) - truth) ** 2)
    alone, both = np.mean((exact - truth[:, None]) ** 2, 0)
    # the image is worth more than the survey and the series together
    print(error, alone, both)
    assert error < both < alone


@pytest.mark.verify
def test_every_site_is_seen(three):
    data = _row(three)
    conditions = {n: np.asarray(data[n]) for n in ("survey", "series", "image")}
    base = three.posterior(conditions)
    value = jnp.zeros(base.event_shape)
    for name, x in conditions.items():
        moved = three.posterior(conditions | {name: x + 1.0})
        assert abs(base.log_prob(value) - moved.log_prob(value)) > 1e-3, name


@pytest.mark.verify
def test_regularized_summaries_are_normal():
    def spread(**options):
        network = SMALL["survey"]
        approximator = approximator_of("set", summary_network=network, **options)
        approximator.fit(
            random.key(0),
            epochs=1,
            num_batches=300,
            batch_size=64,
            validation=0,
            progress_bar=False,
        )
        x = approximator.source.sample(random.key(1), 1000)
        graphdef, state = nnx.split(approximator._trained())
        summaries = approximator.encode(graphdef, state, {"y": x["y"]})
        return float(networks.mmd_to_normal(summaries))

    free = spread()
    regularized = spread(summary_regularizer=networks.mmd_to_normal, regularizer_weight=5.0)
    print(free, regularized)
    assert regularized < 0.3 * free


@pytest.mark.verify
def test_regularizer_is_added_with_its_weight():
    def loss(**options):
        approximator = approximator_of("set", summary_network=SMALL["survey"], **options)
        history = approximator.fit(
            random.key(0), epochs=1, num_batches=1, validation=0, progress_bar=False
        )
        return history.loss[0]

    three = loss(
        summary_regularizer=lambda summaries: 1.0 + 0 * summaries.sum(), regularizer_weight=3
    )
    assert three == pytest.approx(loss() + 3, rel=1e-5)


def test_wrong_regularizers():
    regularizer = networks.mmd_to_normal
    with pytest.raises(ValueError, match="summary_regularizer: nothing is summarized"):
        approximator_of("numbers", summary_regularizer=regularizer)
    for weight in (0, -1.0, np.nan):
        with pytest.raises(ValueError, match="regularizer_weight: expected a positive"):
            approximator_of("series", summary_regularizer=regularizer, regularizer_weight=weight)


def test_masks_of_another_form():
    adapter = (
        npa.Adapter()
        .rename("mu", "inference_variables")
        .as_set("x", mask="seen")
        .as_time_series("y")
        .group(["x", "y"], into="summary_variables")
    )
    draws = {"mu": np.zeros((9, 1)), "seen": np.ones((9, 5), bool), "x": np.zeros((9, 5))}
    bank = npa.OfflineDataset(draws | {"y": np.zeros((9, 7))})
    approximator = npa.ContinuousApproximator(bank, adapter=adapter, inference_network=FLOW)
    with pytest.raises(ValueError, match=r"form of `summary_variables`, \['x', 'y'\], got masks"):
        approximator.fit(random.key(0), epochs=1, progress_bar=False)
