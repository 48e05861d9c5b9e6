# SPDX-License-Identifier: Apache-2.0
"""Approximators that are trained once and shared by the tests."""

import gc
import os
import re
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import jax.monitoring
import numpy as np
import pytest
from jax import random

import numpyro_amortized as npa
from numpyro_amortized.networks import Affine, CouplingFlow, DeepSet, Spline
from tests import models

FLOW = partial(CouplingFlow, depth=2, widths=(32, 32), transform=Spline(bins=8))
AFFINE = partial(CouplingFlow, depth=1, widths=(16,), transform=Affine())
SETS = partial(DeepSet, summary_size=8, widths=(32,), embedding_size=16)
_COMPILATIONS: list[str] = []
_TRAINED = re.compile(
    r"def \w+\(.*\b(normal_mean|regression|hierarchy|constrained)\b.*\):|getfixturevalue"
)
_MAPS = Path("/proc/self/maps")


def _record(event: str, duration: float, **_: object) -> None:
    if event == "/jax/core/compile/backend_compile_duration":
        _COMPILATIONS.append(event)


jax.monitoring.register_event_duration_secs_listener(_record)


def pytest_configure(config: pytest.Config) -> None:
    """Programs compiled by one test serve all others, of every worker, and are gone afterwards."""
    if not hasattr(config, "workerinput"):
        cache = TemporaryDirectory(prefix="numpyro_amortized_tests_")
        os.environ["JAX_COMPILATION_CACHE_DIR"] = cache.name
        config.add_cleanup(cache.cleanup)
    jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    gc.set_threshold(100_000, 50, 100)  # what is traced lives on: looking it over is in vain


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With several workers a file stays together, and so do all files that share a training."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return scope(config.rootpath / nodeid.partition("::")[0])

    return Scheduling(config, log)


@cache
def scope(path: Path) -> str:
    """What the tests of a file are run with, in one process."""
    return "trained" if _TRAINED.search(path.read_text()) else str(path)


@pytest.fixture(scope="module", autouse=True)
def _bounded_maps() -> Iterator[None]:
    """Drop compiled programs before a process has the 65,530 memory maps that Linux allows.

    Every program holds some, and XLA dies with a segmentation fault where it gets no more.
    """
    yield
    if _MAPS.exists() and _MAPS.read_bytes().count(b"\n") > 45_000:
        jax.clear_caches()


@pytest.fixture
def compilations() -> list[str]:
    """Grows by one entry with every program that XLA compiles."""
    return _COMPILATIONS


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests spend their time on compiling, not on running what was compiled; long checks do not."""
    _optimize(item.path.parent.name == "verify")


def _optimize(enabled: bool) -> None:
    jax.config.update("jax_disable_most_optimizations", not enabled)


def others_verified(cases: Iterable[Any], always: Container[Any]) -> list[Any]:
    """Parameters: the cases of ``always`` for `make test` too, the others for `make verify`."""
    verified = pytest.mark.verify
    return [case if case in always else pytest.param(case, marks=verified) for case in cases]


@contextmanager
def optimized() -> Iterator[None]:
    """With XLA's optimizations: for trainings of many steps."""
    before = jax.config.read("jax_disable_most_optimizations")
    _optimize(True)
    yield
    _optimize(not before)


@pytest.fixture(scope="session")
def approximate():
    """Makes an untrained approximator with small networks."""

    def make(model, *args, network=AFFINE, **kwargs) -> npa.ContinuousApproximator:
        options = {k: kwargs.pop(k) for k in ("sites", "sets") if k in kwargs}
        simulator = npa.ModelSimulator(model, *args, **kwargs)
        adapter = npa.Adapter.for_posterior(simulator, **options)
        return npa.ContinuousApproximator(
            simulator, adapter=adapter, inference_network=network, summary_network=SETS
        )

    return make


@pytest.fixture(scope="session")
def normal_mean(approximate) -> npa.ContinuousApproximator:
    """A set of ten normals with unknown mean, trained well."""
    approximator = approximate(models.normal_mean, np.zeros(10), network=FLOW)
    with optimized():
        approximator.fit(random.key(0), epochs=20, progress_bar=False)
    return approximator


@pytest.fixture(scope="session")
def regression(approximate) -> npa.ContinuousApproximator:
    """Normal regression with known covariates, trained well."""
    data = models.DESIGN, np.zeros(len(models.DESIGN))
    approximator = approximate(models.regression, *data, network=FLOW)
    with optimized():
        approximator.fit(random.key(0), epochs=20, progress_bar=False)
    return approximator


@pytest.fixture(scope="session")
def hierarchy(approximate) -> npa.ContinuousApproximator:
    """Eight schools, hardly trained: for what holds of any network."""
    approximator = approximate(models.eight_schools, models.SIGMA, y=models.EFFECTS, network=AFFINE)
    approximator.fit(random.key(0), epochs=1, num_batches=20, progress_bar=False)
    return approximator


@pytest.fixture(scope="session")
def constrained(approximate) -> npa.ContinuousApproximator:
    """A site of every kind of support, hardly trained."""
    approximator = approximate(models.constrained, np.zeros(4), network=AFFINE)
    approximator.fit(random.key(0), epochs=1, num_batches=20, progress_bar=False)
    return approximator
