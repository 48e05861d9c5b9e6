# SPDX-License-Identifier: Apache-2.0
"""Bad input gets an exception that names the site or argument, what was expected and what came."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from flax import nnx
from jax import random

import numpyro_amortized as npa
from numpyro_amortized.datasets import OfflineDataset
from tests import models
from tests.conftest import AFFINE

Y = np.linspace(-1, 2, 6)
LATENTS = {"intercept": np.zeros(()), "slope": np.zeros(2)}


def raises(kind, *words):
    """An exception whose message contains the words in this order."""
    return pytest.raises(kind, match="(?s)" + ".*".join(map(re.escape, words)))


def ask(approximator, entry, conditions):
    """Every method that takes conditions."""
    match entry:
        case "sample":
            return approximator.sample(random.key(0), 3, conditions)
        case "sample_and_log_prob":
            return approximator.sample_and_log_prob(random.key(0), 3, conditions)
        case "posterior":
            return approximator.posterior(conditions)
        case "to_inference_data":
            return approximator.to_inference_data(random.key(0), conditions, num_samples=16)
        case "log_prob":
            rest = conditions if isinstance(conditions, dict) else {}
            return approximator.log_prob(LATENTS | rest)


ENTRIES = ("sample", "sample_and_log_prob", "posterior", "to_inference_data", "log_prob")
CONDITIONS = {
    "missing": ({}, ValueError, ("expected the sites", "'y'", "missing: ['y']")),
    "unknown": ({"y": Y, "x": Y}, ValueError, ("expected the sites", "unexpected: ['x']")),
    "too short": ({"y": Y[:5]}, ValueError, ("'y'", "expected shape (6,)", "got (5,)")),
    "scalar": ({"y": 1.0}, ValueError, ("'y'", "expected shape (6,)", "got ()")),
    "too deep": ({"y": Y[None, None]}, ValueError, ("'y'", "expected shape (6,)", "got (1, 1, 6)")),
    "transposed": ({"y": Y[:, None]}, ValueError, ("'y'", "expected shape (6,)", "got (6, 1)")),
    "no data set": ({"y": np.zeros((0, 6))}, ValueError, ("at least one data set", "length 0")),
    "strings": ({"y": np.array(list("abcdef"))}, ValueError, ("'y'", "expected numbers", "got")),
    "complex": ({"y": Y + 1j}, ValueError, ("'y'", "expected numbers", "complex")),
    "objects": ({"y": [None] * 6}, ValueError, ("'y'", "expected numbers", "object")),
    "ragged": ({"y": [[1.0, 2], [3.0]]}, ValueError, ("'y'",)),
    "NaN": ({"y": np.where(Y > 1, np.nan, Y)}, ValueError, ("'y'", "finite", "got", "obs_mask")),
    "infinite": ({"y": np.where(Y > 1, np.inf, Y)}, ValueError, ("'y'", "finite", "got")),
}


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("cause", CONDITIONS)
def test_conditions(regression, entry, cause):
    conditions, kind, words = CONDITIONS[cause]
    with raises(kind, *words):
        ask(regression, entry, conditions)


@pytest.mark.parametrize("entry", ENTRIES[:-1])
@pytest.mark.parametrize("conditions", [Y, [1.0], None, 3])
def test_conditions_that_are_no_mapping(regression, entry, conditions):
    with raises(TypeError, "conditions", "expected a mapping", type(conditions).__name__):
        ask(regression, entry, conditions)


def test_latents_among_the_conditions_are_named(regression):
    with raises(ValueError, "conditions", "unexpected: ['slope']", "latent"):
        regression.sample(random.key(0), 3, {"y": Y, "slope": np.zeros(2)})


def test_sizes_that_training_never_saw(normal_mean):
    with raises(ValueError, "'y'", "(10,)", "got (12,)", "training saw only the length 10"):
        normal_mean.sample(random.key(0), 3, {"y": np.zeros(12)})
    with raises(ValueError, "'y'", "(10,)", "got (2, 9)", "training saw only the length 10"):
        normal_mean.sample(random.key(0), 3, {"y": np.zeros((2, 9))})


BATCH = np.stack([Y, Y, Y])
LATENT_VALUES = {
    "missing": ({"intercept": 0.0, "y": Y}, ("missing: ['slope']",)),
    "unknown": (LATENTS | {"y": Y, "x": 1.0}, ("unexpected: ['x']",)),
    "wrong shape": (
        {"intercept": 0.0, "slope": np.zeros(3), "y": Y},
        ("'slope'", "expected shape (2,)", "got (3,)"),
    ),
    "unequal axes": (
        {"intercept": np.zeros(4), "slope": np.zeros((5, 2)), "y": Y},
        ("leading axes", "(4,)", "(5, 2)"),
    ),
    "not the axis of the data": (
        {"intercept": np.zeros(4), "slope": np.zeros((4, 2)), "y": BATCH},
        ("leading axes", "3", "(4,)"),
    ),
    "one for many": (LATENTS | {"y": BATCH}, ("'intercept'", "got ()")),
    "too deep": (
        {"intercept": np.zeros((3, 4, 5)), "slope": np.zeros((3, 4, 5, 2)), "y": BATCH},
        ("'intercept'", "got (3, 4, 5)"),
    ),
    "NaN": (LATENTS | {"intercept": np.nan, "y": Y}, ("'intercept'", "finite")),
    "strings": (LATENTS | {"intercept": "a", "y": Y}, ("'intercept'", "expected numbers")),
}


@pytest.mark.parametrize("cause", LATENT_VALUES)
def test_latents_of_log_prob(regression, cause):
    data, words = LATENT_VALUES[cause]
    with raises(ValueError, *words):
        regression.log_prob(data)


@pytest.mark.parametrize("num_samples", [0, -3])
def test_num_samples_must_be_positive(regression, num_samples):
    for entry in (regression.sample, regression.sample_and_log_prob):
        with raises(ValueError, "num_samples", "positive integer", f"got {num_samples}"):
            entry(random.key(0), num_samples, {"y": Y})
    with raises(ValueError, "num_samples", f"got {num_samples}"):
        regression.to_inference_data(random.key(0), {"y": Y}, num_samples=num_samples)


@pytest.mark.parametrize("num_samples", [1.5, 4.0, True, "4", None])
def test_num_samples_must_be_an_integer(regression, num_samples):
    with raises(TypeError, "num_samples", "positive integer", f"got {num_samples!r}"):
        regression.sample(random.key(0), num_samples, {"y": Y})
    with raises(TypeError, "num_samples", f"got {num_samples!r}"):
        regression.to_inference_data(random.key(0), {"y": Y}, num_samples=num_samples)


@pytest.mark.parametrize("batch_size", [0, -1, 1.5, "2"])
def test_batch_size_must_be_a_positive_integer(regression, batch_size):
    with raises((TypeError, ValueError), "batch_size", "positive integer", f"{batch_size!r}"):
        regression.sample(random.key(0), 3, {"y": BATCH}, batch_size=batch_size)


@pytest.mark.parametrize("entry", ENTRIES)
def test_before_fit(approximate, entry):
    approximator = approximate(models.regression, models.DESIGN, Y)
    with raises(RuntimeError, "not trained", "fit"):
        ask(approximator, entry, {"y": Y})


@pytest.fixture(scope="module")
def counting(approximate):
    """Counts of which one is masked."""

    def model(y, keep):
        rate = numpyro.sample("rate", dist.Gamma(2, 1))
        with numpyro.plate("n", len(y)), numpyro.handlers.mask(mask=keep):
            numpyro.sample("y", dist.Poisson(rate), obs=y)

    approximator = approximate(
        model, np.zeros(3, int), np.array([True, False, True]), network=AFFINE
    )
    approximator.fit(random.key(0), epochs=1, num_batches=3, progress_bar=False)
    return approximator


def test_counts_are_whole_numbers(counting):
    with raises(ValueError, "'y'", "whole numbers", "int32", "1.5"):
        counting.sample(random.key(0), 3, {"y": [1.5, 0, 2]})
    whole = counting.sample(random.key(0), 3, {"y": [1.0, 0, 2]})
    again = counting.sample(random.key(0), 3, {"y": [1, 0, 2]})
    np.testing.assert_array_equal(whole["rate"], again["rate"])


def test_masked_entries_may_be_anything(counting):
    expected = counting.sample(random.key(0), 3, {"y": [1.0, 0.0, 2.0]})["rate"]
    for hidden in (np.nan, np.inf, 0.5, 7.0):
        draws = counting.sample(random.key(0), 3, {"y": [1.0, hidden, 2.0]})
        np.testing.assert_array_equal(draws["rate"], expected)
    with raises(ValueError, "'y'", "finite"):
        counting.sample(random.key(0), 3, {"y": [np.nan, 0.0, 2.0]})


def test_wrong_shapes_of_masked_sites(counting):
    for bad in (np.zeros(4), np.zeros((2, 2)), 0.0):
        with raises(ValueError, "'y'", "expected shape (3,)", f"got {np.shape(bad)}"):
            counting.sample(random.key(0), 3, {"y": bad})


def no_latents(y):
    numpyro.sample("y", dist.Normal(0, 1), obs=y)


def only_discrete(y):
    z = numpyro.sample("z", dist.Bernoulli(0.5))
    numpyro.sample("y", dist.Normal(z, 1), obs=y)


def no_observed():
    numpyro.sample("mu", dist.Normal(0, 1))


MODELS = {
    "no latent": (no_latents, (1.0,), ("no latent site", "'y'")),
    "only discrete": (only_discrete, (1.0,), ("no continuous latent site", "'z'")),
    "no observed": (no_observed, (), ("observed",)),
}


@pytest.mark.parametrize("cause", MODELS)
def test_models(cause):
    model, args, words = MODELS[cause]
    with raises(ValueError, *words):
        npa.amortize(model, *args)


@pytest.fixture(scope="module")
def bank(regression):
    return jax.tree.map(np.asarray, regression.source.sample(random.key(0), 40))


def without(bank, name):
    return {key: value for key, value in bank.items() if key != name}


BANKS = {
    "missing": (lambda b: without(b, "slope"), ("dataset", "missing: ['slope']")),
    "wrong shape": (
        lambda b: b | {"slope": np.zeros((40, 3))},
        ("dataset", "'slope'", "expected shape (num_simulations, 2)", "got (40, 3)"),
    ),
    "scalar": (lambda b: b | {"y": 1.0}, ("dataset", "'y'", "expected shape", "got ()")),
    "unequal lengths": (lambda b: b | {"y": np.zeros((30, 6))}, ("leading axis", "30")),
    "one simulation": (lambda b: {k: v[:1] for k, v in b.items()}, ("simulations", "1")),
    "empty": (lambda b: {k: v[:0] for k, v in b.items()}, ("at least one",)),
    "strings": (
        lambda b: b | {"intercept": np.array(["a"] * 40)},
        ("dataset", "'intercept'", "expected numbers"),
    ),
    "never finite": (lambda b: b | {"y": np.full((40, 6), np.nan)}, ("finite",)),
}


@pytest.mark.parametrize("as_object", [False, True], ids=["mapping", "object"])
@pytest.mark.parametrize("cause", BANKS)
def test_banks(approximate, bank, cause, as_object):
    change, words = BANKS[cause]
    if as_object and cause == "scalar":
        words = ("common leading axis", "'y': None")
    approximator = approximate(models.regression, models.DESIGN, Y)
    with raises(ValueError, *words):
        dataset = OfflineDataset(change(bank)) if as_object else change(bank)
        approximator.fit(random.key(0), dataset=dataset, epochs=1, progress_bar=False)


@pytest.mark.parametrize("cause", ["missing", "wrong shape"])
def test_banks_for_validation(approximate, bank, cause):
    change, words = BANKS[cause]
    approximator = approximate(models.regression, models.DESIGN, Y)
    with raises(ValueError, *(word for word in words if word != "dataset")):
        approximator.fit(random.key(0), validation=change(bank), epochs=1, progress_bar=False)


@pytest.mark.parametrize("name", ["epochs", "num_batches", "batch_size"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True, "3"])
def test_sizes_of_training(approximate, name, value):
    approximator = approximate(models.regression, models.DESIGN, Y)
    with raises((TypeError, ValueError), name, "positive integer", f"{value!r}"):
        approximator.fit(random.key(0), **{"progress_bar": False, "epochs": 1, name: value})


@pytest.mark.parametrize("name", ["validation", "rejuvenation"])
@pytest.mark.parametrize("value", [-1, 1.5, "3"])
def test_counts_that_may_be_zero(approximate, bank, name, value):
    approximator = approximate(models.regression, models.DESIGN, Y)
    options = {"dataset": bank, "progress_bar": False, "epochs": 1, name: value}
    with raises((TypeError, ValueError), name, f"{value!r}"):
        approximator.fit(random.key(0), **options)


def test_nothing_is_trained_by_a_failed_fit(approximate, bank):
    approximator = approximate(models.regression, models.DESIGN, Y)
    with raises(ValueError, "missing"):
        approximator.fit(random.key(0), dataset=without(bank, "y"), progress_bar=False)
    with raises(RuntimeError, "not trained"):
        approximator.sample(random.key(0), 3, {"y": Y})


def test_a_failed_call_changes_nothing(regression):
    data = {"y": Y.copy(), "x": Y.copy()}
    before = [np.array(leaf) for leaf in jax.tree.leaves(nnx.state(regression.inference_network))]
    with raises(ValueError, "unexpected: ['x']"):
        regression.sample(random.key(0), 3, data)
    assert list(data) == ["y", "x"]
    np.testing.assert_array_equal(data["y"], Y)
    after = jax.tree.leaves(nnx.state(regression.inference_network))
    for first, second in zip(before, after, strict=True):
        np.testing.assert_array_equal(first, second)


def test_double_precision_data_are_welcome(regression):
    expected = regression.sample(random.key(0), 3, {"y": jnp.asarray(Y)})
    for y in (Y.astype(np.float64), Y.tolist(), Y.astype(np.float32)):
        draws = regression.sample(random.key(0), 3, {"y": y})
        np.testing.assert_array_equal(draws["slope"], expected["slope"])
