# SPDX-License-Identifier: Apache-2.0
"""A catalogue of bad input: entry point, cause, and the words that its message must have.

Every message says what was expected, what came, and where or how to mend it. ``python -m
tests.test_catalogue`` prints them all, to be read as a user would.
"""

import re
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpyro
import optax
import pytest
from flax import nnx
from jax import random

import numpyro_amortized as npa
from numpyro_amortized import networks, scoring_rules
from numpyro_amortized.datasets import OfflineDataset
from tests import models
from tests.conftest import AFFINE

KEY, Y = random.key(0), np.linspace(-1, 2, 6)
MODEL = partial(models.regression, models.DESIGN, Y)
QUICK = {"epochs": 1, "num_batches": 1, "batch_size": 8, "validation": 0, "progress_bar": False}


class Given(NamedTuple):
    """What the calls are given."""

    trained: npa.ContinuousApproximator  # of MODEL
    path: Any  # an empty directory

    @property
    def simulator(self) -> npa.ModelSimulator:
        return self.trained.source

    @property
    def untrained(self) -> npa.ContinuousApproximator:
        return self.approximator()

    def approximator(self, source=None, **options) -> npa.ContinuousApproximator:
        source, options = source or self.simulator, {"inference_network": AFFINE} | options
        return npa.ContinuousApproximator(source, **{"adapter": self.trained.adapter} | options)

    def fit(self, **options) -> Any:
        return self.untrained.fit(KEY, **QUICK | options)

    @property
    def file(self) -> Any:
        (self.path / "file").write_text("something else")
        return self.path / "file"


class Case(NamedTuple):
    entry: str
    cause: str
    call: Callable[[Given], Any]
    kind: type[Exception]
    words: tuple[str, ...]


def numbers(rng_key):
    return {"x": random.normal(rng_key, (3,))}


def ragged(rng):
    return {"x": np.zeros(rng.integers(1, 50))}


E, T, V = RuntimeError, TypeError, ValueError
DATA = {"y": Y}
CASES = [
    # models and simulators
    Case(
        "amortize",
        "an argument of the model is missing",
        lambda g: npa.amortize(models.regression),
        T,
        ("missing", "'x' and 'y'"),
    ),
    Case(
        "amortize",
        "no model",
        lambda g: npa.amortize(3),
        T,
        ("model: expected a NumPyro model", "int"),
    ),
    Case(
        "ModelSimulator",
        "unknown observed site",
        lambda g: npa.ModelSimulator(MODEL, observed=("z",)),
        V,
        ("observed: no sites named ['z']", "the model has", "'y'"),
    ),
    Case(
        "ModelSimulator",
        "sizes is a number",
        lambda g: npa.ModelSimulator(models.normal_mean, Y, sizes=5),
        T,
        ("sizes: expected a mapping", "got 5"),
    ),
    Case(
        "ModelSimulator",
        "sizes without bounds",
        lambda g: npa.ModelSimulator(models.normal_mean, Y, sizes={"n": 5}),
        T,
        ("sizes: expected a mapping", '"n": (5, 200)', "got {'n': 5}"),
    ),
    Case(
        "ModelSimulator",
        "sizes in the wrong order",
        lambda g: npa.ModelSimulator(models.normal_mean, Y, sizes={"n": (5, 2)}),
        V,
        ("sizes: 'n': expected 1 <= least < greatest", "(5, 2)"),
    ),
    Case(
        "ModelSimulator",
        "two sizes",
        lambda g: npa.ModelSimulator(models.normal_mean, Y, sizes={"n": (2, 5), "m": (2, 5)}),
        V,
        ("sizes: expected one size", "['n', 'm']", "context="),
    ),
    Case(
        "ModelSimulator",
        "unknown size",
        lambda g: npa.ModelSimulator(models.normal_mean, Y, sizes={"m": (2, 5)}),
        V,
        ("sizes: 'm' is neither an argument", "plates"),
    ),
    Case(
        "ModelSimulator",
        "context is a dictionary",
        lambda g: npa.ModelSimulator(models.regression, y=Y, context={"x": 1}),
        T,
        ("context: expected a function of a key", "dict"),
    ),
    Case(
        "ModelSimulator",
        "context of no argument",
        lambda g: npa.ModelSimulator(
            models.regression, models.DESIGN, Y, context=lambda key: {"z": 1.0}
        ),
        V,
        ("context: it draws ['z']", "no arguments of the model", "'x'"),
    ),
    Case(
        "ModelSimulator",
        "context that is also passed",
        lambda g: npa.ModelSimulator(
            models.regression, models.DESIGN, Y, context=lambda key: {"x": 1.0}
        ),
        V,
        ("context: ['x'] are drawn, but also passed", "leave out one"),
    ),
    Case(
        "Simulator.sample",
        "a number as key",
        lambda g: g.simulator.sample(3, 2),
        T,
        ("rng_key: expected one key", "jax.random.key(0)", "got 3"),
    ),
    Case(
        "Simulator.sample",
        "several keys",
        lambda g: g.simulator.sample(random.split(KEY, 3), 2),
        T,
        ("rng_key: expected one key", "got"),
    ),
    Case(
        "Simulator.sample",
        "a negative number",
        lambda g: g.simulator.sample(KEY, -1),
        V,
        ("batch_shape: expected sizes of at least 1", "got -1"),
    ),
    Case(
        "Simulator.sample",
        "half a simulation",
        lambda g: g.simulator.sample(KEY, 2.5),
        T,
        ("batch_shape: expected an integer", "got 2.5"),
    ),
    Case(
        "rejection_sample",
        "one boolean for all",
        lambda g: g.simulator.rejection_sample(KEY, 5, lambda draws: True),
        T,
        ("expected 5 booleans", "got bool"),
    ),
    Case(
        "rejection_sample",
        "nothing is accepted",
        lambda g: g.simulator.rejection_sample(
            KEY, 5, lambda draws: draws["y"][:, 0] > 1e9, max_rounds=2
        ),
        E,
        ("accepted 0 of 10", "Widen it"),
    ),
    Case(
        "rejection_sample",
        "no rounds",
        lambda g: g.simulator.rejection_sample(KEY, 5, lambda draws: draws["y"] > 0, max_rounds=0),
        V,
        ("max_rounds: expected at least 1", "got 0"),
    ),
    Case(
        "LambdaSimulator",
        "no function",
        lambda g: npa.LambdaSimulator(3),
        T,
        ("Expected a function", "got 3", "lambda rng"),
    ),
    Case(
        "LambdaSimulator",
        "both sources of randomness",
        lambda g: npa.LambdaSimulator(lambda rng, rng_key: {}),
        T,
        ("expected rng_key, for JAX, or rng, for the host", "both"),
    ),
    Case(
        "LambdaSimulator",
        "a number without a name",
        lambda g: npa.LambdaSimulator(lambda rng: rng.normal()).sample(KEY, 2),
        T,
        ("expected a dictionary", "got float", "Return {'x': x}"),
    ),
    Case(
        "LambdaSimulator",
        "other lengths each time",
        lambda g: npa.LambdaSimulator(ragged).sample(KEY, 5),
        V,
        ("'x'", "shape", "pad", "mask"),
    ),
    Case(
        "LambdaSimulator",
        "a string",
        lambda g: npa.LambdaSimulator(lambda rng: {"x": "a"}).sample(KEY, 5),
        T,
        ("'x'", "expected", "number", "str"),
    ),
    Case(
        "LambdaSimulator",
        "other entries each time",
        lambda g: npa.LambdaSimulator(lambda rng: {str(rng.integers(99)): 1.0}).sample(KEY, 5),
        V,
        ("Simulation 1: expected entries", "got", "fill value"),
    ),
    Case(
        "SequentialSimulator",
        "no steps",
        lambda g: npa.SequentialSimulator([]),
        V,
        ("steps: expected at least one", "got none"),
    ),
    Case(
        "SequentialSimulator",
        "an argument that no step returns",
        lambda g: npa.SequentialSimulator([lambda rng, mu: {"x": mu}]).sample(KEY, 2),
        T,
        ("argument 'mu'", "earlier steps returned []", "default"),
    ),
    Case(
        "make_simulator",
        "a number",
        lambda g: npa.make_simulator(3),
        T,
        ("Expected a simulator, a function, a list", "got int"),
    ),
    Case(
        "ModelComparisonSimulator",
        "one model",
        lambda g: npa.ModelComparisonSimulator([numbers]),
        V,
        ("simulators: expected at least two models", "got 1"),
    ),
    Case(
        "ModelComparisonSimulator",
        "probabilities beyond one",
        lambda g: npa.ModelComparisonSimulator([numbers] * 2, probs=[0.5, 0.6]),
        V,
        ("probs: expected a sum of 1", "got 1.1"),
    ),
    Case(
        "ModelComparisonSimulator",
        "too few probabilities",
        lambda g: npa.ModelComparisonSimulator([numbers] * 2, probs=[1.0]),
        V,
        ("probs: expected one number for each of 2 models", "(1,)"),
    ),
    Case(
        "ModelComparisonSimulator",
        "probabilities twice",
        lambda g: npa.ModelComparisonSimulator([numbers] * 2, probs=[0.5, 0.5], logits=[0, 0]),
        V,
        ("probs, logits: expected at most one", "both"),
    ),
    Case(
        "ModelComparisonSimulator",
        "unknown key_conflicts",
        lambda g: npa.ModelComparisonSimulator([numbers] * 2, key_conflicts="merge"),
        V,
        ("key_conflicts: expected", "'drop'", "got 'merge'"),
    ),
    # data sets
    Case(
        "OfflineDataset",
        "a list",
        lambda g: OfflineDataset([1, 2]),
        T,
        ("OfflineDataset: expected a mapping", "list"),
    ),
    Case(
        "OfflineDataset",
        "unequal lengths",
        lambda g: OfflineDataset({"a": np.ones(3), "b": np.ones(2)}),
        V,
        ("common leading axis", "'a': 3", "'b': 2"),
    ),
    Case(
        "OnlineDataset",
        "no simulator",
        lambda g: npa.OnlineDataset(3),
        T,
        ("OnlineDataset: expected a simulator", "JAX can trace", "int", "HostDataset"),
    ),
    Case(
        "DiskDataset",
        "no bank there",
        lambda g: npa.DiskDataset(g.path / "bank"),
        FileNotFoundError,
        ("expected a bank of simulations", "to_disk"),
    ),
    Case(
        "to_disk",
        "no simulations",
        lambda g: g.simulator.to_disk(KEY, 0, g.path / "bank"),
        V,
        ("num_simulations: expected an integer of at least 1", "got 0"),
    ),
    Case(
        "to_disk",
        "over another file",
        lambda g: g.simulator.to_disk(KEY, 5, g.file),
        FileExistsError,
        ("expected a new path", "got a file"),
    ),
    # adapters
    Case(
        "Adapter",
        "an entry that is not there",
        lambda g: g.approximator(adapter=npa.Adapter().log("sgima")),
        V,
        ("expected entries from", "log", "got ['sgima']"),
    ),
    Case(
        "Adapter",
        "a number for a name",
        lambda g: npa.Adapter().drop(3),
        T,
        ("expected the name of an entry", "got 3"),
    ),
    Case(
        "Adapter",
        "moments not fitted",
        lambda g: npa.Adapter().standardize("y").forward(DATA),
        E,
        ("moments of ['y'] are not fitted", "adapter.bind(draws)"),
    ),
    Case(
        "Adapter",
        "no inference variables",
        lambda g: g.approximator(adapter=npa.Adapter().rename("y", "z")).fit(KEY, **QUICK),
        V,
        ("expected `inference_variables` among its outputs", "concatenate"),
    ),
    Case(
        "Adapter",
        "variables that cannot be taken back",
        lambda g: g.approximator(
            adapter=npa.Adapter()
            .take("slope", indices=[0])
            .concatenate(["slope"], into="inference_variables", axis=None)
        ),
        V,
        ("cannot be undone", "Only bijections"),
    ),
    Case(
        "Adapter",
        "fractions as classes",
        lambda g: npa.Adapter().one_hot("y", 4).forward(DATA),
        T,
        ("one_hot ['y']: expected integers", "got float32", "map_dtype(names, int)"),
    ),
    Case(
        "Adapter.for_posterior",
        "unknown site",
        lambda g: npa.Adapter.for_posterior(g.simulator, sites=("z",)),
        V,
        ("`sites`: expected names of latent sites", "'slope'", "['z']"),
    ),
    Case(
        "Adapter.for_posterior",
        "a set of no observed site",
        lambda g: npa.Adapter.for_posterior(g.simulator, sets={"z": 0}),
        V,
        ("`sets`: 'z' is not an observed site",),
    ),
    Case(
        "Adapter.for_posterior",
        "an axis that is not there",
        lambda g: npa.Adapter.for_posterior(g.simulator, sets={"y": 3}),
        V,
        ("`sets`: site 'y' of shape (6,) has no axis 3",),
    ),
    Case(
        "Adapter.for_posterior",
        "no groups",
        lambda g: npa.Adapter.for_posterior(g.simulator, hierarchical=True),
        V,
        ("hierarchical: the posterior does not factorize",),
    ),
    Case(
        "Adapter.for_posterior",
        "a model that is not traced",
        lambda g: npa.Adapter.for_posterior(MODEL),
        T,
        (
            "Adapter.for_posterior: expected a ModelSimulator",
            "partial",
            "ModelSimulator(model, *args)",
        ),
    ),
    Case(
        "Adapter.for_likelihood",
        "another simulator",
        lambda g: npa.Adapter.for_likelihood(npa.make_simulator(numbers)),
        T,
        ("Adapter.for_likelihood: expected a ModelSimulator",),
    ),
    # approximators
    Case(
        "ContinuousApproximator",
        "a bank as source",
        lambda g: npa.ContinuousApproximator({"y": Y}),
        T,
        ("source: expected a simulator", "dict"),
    ),
    Case(
        "ContinuousApproximator",
        "no adapter for a bank",
        lambda g: npa.ContinuousApproximator(OfflineDataset({"y": Y})),
        V,
        ("adapter: expected one", "OfflineDataset", "concatenate"),
    ),
    Case(
        "ContinuousApproximator",
        "a string as adapter",
        lambda g: g.approximator(adapter="posterior"),
        T,
        ("adapter: expected an Adapter", "str", "for_posterior"),
    ),
    Case(
        "ContinuousApproximator",
        "a string as network",
        lambda g: g.approximator(inference_network="flow").fit(KEY, **QUICK),
        T,
        ("expected a network", "CouplingFlow", "'flow'"),
    ),
    Case(
        "ContinuousApproximator",
        "a summary of an unknown array",
        lambda g: g.approximator(summary_network={"z": networks.DeepSet}).fit(KEY, **QUICK),
        V,
        ("summary_network: expected networks of nothing", "no array is summarized", "['z']"),
    ),
    Case(
        "ContinuousApproximator",
        "a regularizer without summaries",
        lambda g: g.approximator(summary_regularizer=networks.mmd_to_normal),
        V,
        ("summary_regularizer: nothing is summarized", "sets="),
    ),
    Case(
        "RatioApproximator",
        "no candidates",
        lambda g: npa.RatioApproximator(g.simulator, adapter=g.trained.adapter, K=0),
        V,
        ("K: expected a positive integer", "got 0"),
    ),
    Case(
        "RatioApproximator",
        "negative gamma",
        lambda g: npa.RatioApproximator(g.simulator, adapter=g.trained.adapter, gamma=-1),
        V,
        ("gamma: expected a positive number", "got -1"),
    ),
    Case(
        "RatioApproximator.fit",
        "batches no larger than K",
        lambda g: npa.RatioApproximator(g.simulator, adapter=g.trained.adapter, K=9).fit(
            KEY, **QUICK
        ),
        V,
        ("batch_size: expected more than the K=9 candidates", "got 8"),
    ),
    Case(
        "ScoringRuleApproximator",
        "no rule",
        lambda g: npa.ScoringRuleApproximator(
            g.simulator, adapter=g.trained.adapter, scoring_rules={}
        ),
        V,
        ("scoring_rules: expected at least one", "{name: rule}"),
    ),
    Case(
        "ScoringRuleApproximator",
        "rules without names",
        lambda g: npa.ScoringRuleApproximator(
            g.simulator, adapter=g.trained.adapter, scoring_rules=[scoring_rules.Mean()]
        ),
        T,
        ("scoring_rules: expected a mapping of names to rules", "list"),
    ),
    Case(
        "ScoringRuleApproximator",
        "a name of a rule",
        lambda g: npa.ScoringRuleApproximator(
            g.simulator, adapter=g.trained.adapter, scoring_rules={"mean": "mean"}
        ),
        T,
        ("scoring_rules: 'mean': expected a scoring rule", "got 'mean'"),
    ),
    Case(
        "scoring_rules.Quantiles",
        "a level beyond one",
        lambda g: scoring_rules.Quantiles((0.1, 1.5)),
        V,
        ("levels: expected increasing numbers between 0 and 1", "1.5"),
    ),
    Case(
        "EnsembleApproximator",
        "no member",
        lambda g: npa.EnsembleApproximator({}),
        V,
        ("members: expected at least one approximator", "{name: approximator}"),
    ),
    Case(
        "EnsembleApproximator",
        "members without names",
        lambda g: npa.EnsembleApproximator([g.trained]),
        T,
        ("members: expected a mapping", "list"),
    ),
    Case(
        "EnsembleApproximator",
        "a member that is none",
        lambda g: npa.EnsembleApproximator({"a": 3}),
        T,
        ("members: expected approximators of latent sites", "int", "'a'"),
    ),
    Case(
        "EnsembleApproximator.sample",
        "weights beyond one",
        lambda g: npa.EnsembleApproximator({"a": g.trained}).sample(
            KEY, 3, DATA, member_weights={"a": 2.0}
        ),
        V,
        ("member_weights: expected probabilities of the members ['a']", "sum of 1", "2.0"),
    ),
    Case(
        "ModelComparisonApproximator",
        "one model",
        lambda g: npa.ModelComparisonApproximator([g.simulator]),
        V,
        ("simulators: expected at least two models", "got 1"),
    ),
    Case(
        "CompositionalApproximator.fit",
        "a flow without scores",
        lambda g: npa.CompositionalApproximator(
            g.simulator, adapter=g.trained.adapter, inference_network=networks.CouplingFlow
        ).fit(KEY, **QUICK),
        T,
        ("inference_network: expected DiffusionModel or FlowMatching", "CouplingFlow"),
    ),
    # training
    Case(
        "fit",
        "a number as key",
        lambda g: g.untrained.fit(0, **QUICK),
        T,
        ("rng_key: expected one key", "got 0"),
    ),
    Case(
        "fit",
        "a name of an optimizer",
        lambda g: g.fit(optimizer="adam"),
        T,
        ("optimizer: expected an Optax optimizer", "optax.adam(1e-3)", "'adam'"),
    ),
    Case(
        "fit",
        "an optimizer without a rate",
        lambda g: g.fit(optimizer=optax.adam),
        T,
        ("optimizer: expected an Optax optimizer", "optax.adam(1e-3)", "got adam"),
    ),
    Case(
        "fit",
        "a path as data set",
        lambda g: g.fit(dataset="bank"),
        T,
        ("dataset: expected a mapping of site names to arrays or a data set", "str"),
    ),
    Case(
        "fit",
        "a list as validation",
        lambda g: g.fit(validation=[1]),
        V,
        ("validation: expected a bank or an integer of at least 0", "got [1]"),
    ),
    Case(
        "fit",
        "everything held out",
        lambda g: g.fit(dataset=g.simulator.sample(KEY, 9), validation=9),
        V,
        ("validation: expected fewer simulations than the 9", "got 9"),
    ),
    Case(
        "fit",
        "checkpoints over a file",
        lambda g: g.fit(checkpoint_dir=g.file),
        FileExistsError,
        ("checkpoint_dir", "expected a new path", "Choose another path"),
    ),
    Case(
        "fit",
        "moves of no bank",
        lambda g: g.fit(rejuvenation=5),
        V,
        ("rejuvenation: expected 0", "got 5", "moves need a bank"),
    ),
    # inference
    Case(
        "sample",
        "no key",
        lambda g: g.trained.sample(None, 3, DATA),
        T,
        ("rng_key: expected one key", "got None"),
    ),
    Case(
        "sample",
        "arguments in another order",
        lambda g: g.trained.sample(KEY, DATA, 3),
        T,
        ("num_samples: expected a positive integer", "'y'"),
    ),
    Case(
        "to_inference_data",
        "no multiple of four",
        lambda g: g.trained.to_inference_data(KEY, DATA, num_samples=6),
        V,
        ("num_samples: expected a multiple of 4", "chains", "got 6"),
    ),
    Case(
        "ancestral_sample",
        "no groups",
        lambda g: g.trained.ancestral_sample(KEY, 3, DATA, {}),
        V,
        ("does not factorize over groups", "hierarchical=True"),
    ),
    Case(
        "likelihood",
        "of a posterior",
        lambda g: g.trained.likelihood({"intercept": 0.0}),
        V,
        ("expected an approximator of a likelihood", "Adapter.for_likelihood"),
    ),
    Case(
        "importance_sample",
        "not trained",
        lambda g: npa.importance_sample(KEY, g.untrained, DATA),
        E,
        ("not trained", "fit(rng_key)"),
    ),
    Case(
        "importance_sample",
        "a model for an approximator",
        lambda g: npa.importance_sample(KEY, MODEL, DATA),
        T,
        ("approximator: expected", "ContinuousApproximator", "partial"),
    ),
    Case(
        "importance_sample",
        "no draws",
        lambda g: npa.importance_sample(KEY, g.trained, DATA, num_samples=0),
        V,
        ("num_samples: expected a positive integer", "got 0"),
    ),
    Case(
        "importance_sample",
        "other data",
        lambda g: npa.importance_sample(KEY, g.trained, {"x": Y}),
        V,
        ("conditions: expected the sites ['y']", "unexpected: ['x']"),
    ),
    Case(
        "refine",
        "a model for an approximator",
        lambda g: npa.refine(KEY, MODEL, DATA),
        T,
        ("approximator: expected", "ContinuousApproximator", "partial"),
    ),
    Case(
        "refine",
        "no multiple of four",
        lambda g: npa.refine(KEY, g.trained, DATA, num_samples=6),
        V,
        ("num_samples: expected a multiple of 4", "got 6"),
    ),
    Case(
        "refine",
        "no proposals",
        lambda g: npa.refine(KEY, g.trained, DATA, max_proposals=0),
        V,
        ("max_proposals: expected a positive integer", "got 0"),
    ),
    Case(
        "AmortizedGuide",
        "not trained",
        lambda g: npa.AmortizedGuide(MODEL, g.untrained),
        E,
        ("not trained", "fit(rng_key)"),
    ),
    Case(
        "AmortizedGuide",
        "arguments in another order",
        lambda g: npa.AmortizedGuide(g.trained, MODEL),
        T,
        ("approximator: expected", "ContinuousApproximator", "partial"),
    ),
    Case(
        "AmortizedGuide",
        "a batch of data",
        lambda g: npa.AmortizedGuide(MODEL, g.trained, observed={"y": np.stack([Y, Y])}),
        V,
        ("expected one data set, got a batch of 2",),
    ),
    Case(
        "AmortizedGuide",
        "another model",
        lambda g: numpyro.handlers.seed(
            npa.AmortizedGuide(partial(models.normal_mean, Y), g.trained), 0
        )(),
        V,
        ("expected a model with the latent sites ['intercept', 'slope']", "missing"),
    ),
    # saving
    Case(
        "save",
        "over another file",
        lambda g: g.trained.save(g.file),
        FileExistsError,
        ("expected a new path", "Choose another path"),
    ),
    Case(
        "save",
        "a function without a name",
        lambda g: npa.Adapter().apply("y", forward=lambda y: y).save(g.path / "saved"),
        T,
        ("a function without a name cannot be restored", "custom_objects="),
    ),
    Case(
        "load",
        "nothing there",
        lambda g: npa.load(g.path / "nothing"),
        FileNotFoundError,
        ("expected a directory that was saved", "found nothing"),
    ),
    Case("load", "another directory", lambda g: npa.load(g.path), V, ("manifest.json is missing",)),
    # networks
    Case(
        "CouplingFlow",
        "no variables",
        lambda g: networks.CouplingFlow(0, 1, rngs=nnx.Rngs(0)),
        V,
        ("CouplingFlow: expected size >= 1", "size=0"),
    ),
    Case(
        "CouplingFlow",
        "no layers",
        lambda g: networks.CouplingFlow(2, 1, depth=0, rngs=nnx.Rngs(0)),
        V,
        ("CouplingFlow: expected", "depth >= 1", "depth=0"),
    ),
    Case(
        "DiffusionModel",
        "no noise",
        lambda g: networks.DiffusionModel(2, 1, noise_std=0, rngs=nnx.Rngs(0)),
        V,
        ("DiffusionModel: expected noise_std > 0", "got 0"),
    ),
    Case(
        "GRU",
        "an even kernel",
        lambda g: networks.GRU(3, kernel_size=2, rngs=nnx.Rngs(0)),
        V,
        ("kernel_size: expected an odd number", "got 2"),
    ),
    Case(
        "SetTransformer",
        "heads that do not divide",
        lambda g: networks.SetTransformer(3, width=10, num_heads=3, rngs=nnx.Rngs(0)),
        V,
        ("num_heads: expected a divisor of width=10", "got 3"),
    ),
    # diagnostics
    Case(
        "simulation_based_calibration",
        "no data sets",
        lambda g: npa.diagnostics.simulation_based_calibration(KEY, g.trained, num_datasets=0),
        V,
        ("num_datasets: expected", "got 0"),
    ),
    Case(
        "simulation_based_calibration",
        "a taken name",
        lambda g: npa.diagnostics.simulation_based_calibration(
            KEY, g.trained, num_datasets=4, num_samples=4, quantities={"slope": len}
        ),
        V,
        ("quantities: ['slope'] are names of sites", "choose others"),
    ),
    Case(
        "simulation_based_calibration",
        "data without latents",
        lambda g: npa.diagnostics.simulation_based_calibration(
            KEY, g.trained, num_samples=4, simulations=DATA
        ),
        V,
        ("simulations: expected values of", "missing: ['intercept', 'slope']"),
    ),
    Case(
        "recovery",
        "no draws of a site",
        lambda g: npa.diagnostics.recovery({"a": np.zeros(4)}, {"b": np.zeros((4, 5))}),
        V,
        ("draws: expected the sites ['a']", "missing: ['a']"),
    ),
    Case(
        "c2st",
        "other dimensions",
        lambda g: npa.diagnostics.c2st(np.zeros((4, 2)), np.zeros((4, 3))),
        V,
        ("c2st: expected two arrays of one shape", "(4, 3)"),
    ),
    Case(
        "confusion_matrix",
        "rows that are not one-hot",
        lambda g: npa.diagnostics.confusion_matrix(np.full((3, 2), 0.5), np.ones((3, 2))),
        V,
        ("model_indices: expected one-hot rows",),
    ),
    Case(
        "tarp",
        "one data set",
        lambda g: npa.diagnostics.tarp(KEY, {"a": np.zeros(1)}, {"a": np.zeros((1, 5))}),
        V,
        ("truth: expected at least two data sets", "got 1"),
    ),
    Case(
        "RandomMissing",
        "a probability of two",
        lambda g: npa.RandomMissing("y", 2.0),
        V,
        ("`probability`: expected a number between 0 and 1", "got 2.0"),
    ),
    Case(
        "split_branches",
        "no branching site",
        lambda g: npa.split_branches(MODEL),
        V,
        ("No site among", "marked as branching", "infer="),
    ),
]


@pytest.fixture(scope="module")
def given(regression, tmp_path_factory):
    return Given(regression, tmp_path_factory.mktemp("catalogue"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.entry}: {case.cause}")
def test_message(given, case):
    with pytest.raises(case.kind, match="(?s)" + ".*".join(map(re.escape, case.words))):
        case.call(given)


def test_at_least_sixty_distinct_ones():
    assert len({(case.entry, case.cause) for case in CASES}) == len(CASES) >= 60


def main():
    """Print every message as users get it."""
    import tempfile
    from pathlib import Path

    approximator = npa.ContinuousApproximator(MODEL, inference_network=AFFINE)
    approximator.fit(KEY, **QUICK)
    given = Given(approximator, Path(tempfile.mkdtemp()))
    for case in CASES:
        try:
            message = f"no error: {case.call(given)!r}"[:200]
        except Exception as error:
            message = f"{type(error).__name__}: {error}"
            right = isinstance(error, case.kind) and re.search(
                "(?s)" + ".*".join(map(re.escape, case.words)), str(error)
            )
            message = message if right else "!!! " + message
        print(f"{case.entry}, {case.cause}:\n    {message}")


if __name__ == "__main__":
    main()
