# SPDX-License-Identifier: Apache-2.0
"""Runs that are cut off and gone on with end as if they had not been."""

import os
import random as python_random
import re
import signal
import subprocess
import sys
import time
import warnings
from contextlib import contextmanager
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import random

from numpyro_amortized import checkpoints, training
from numpyro_amortized.approximators.inputs import training_inputs
from numpyro_amortized.checkpoints import changing
from numpyro_amortized.datasets import OfflineDataset, OnlineDataset
from numpyro_amortized.disk import DiskDataset, to_disk
from numpyro_amortized.streamed import HostDataset
from numpyro_amortized.training import train
from tests.conftest import others_verified
from tests.interrupted import fit, parameters, untrained
from tests.test_datasets import Line, Points, squared

BANK = Points().sample(random.key(0), 40)
LOAD = 2 * 8 * 8  # bytes of two batches of eight points: an epoch has two loads


@pytest.fixture(autouse=True)
def every_epoch(monkeypatch):
    monkeypatch.setattr(checkpoints, "_COST", 0)


def raises(kind, *words):
    return pytest.raises(kind, match="(?s)" + ".*".join(map(re.escape, words)))


class CrashError(Exception):
    pass


def crash():
    raise CrashError


def interrupt():
    """Press Ctrl-C; the jobs that a shell runs in the background would ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def after_epochs(number, then):
    """Do something at the end of an epoch, before its checkpoint."""
    seen, report = [], training._report

    def reporting(*args):
        report(*args)
        seen.append(args)
        if len(seen) == number:
            then()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "_report", reporting)
        yield


def run(dataset, directory=None, **options):
    """Regress y on x, with momentum: the optimizer has a state."""
    defaults = {
        "optimizer": optax.sgd(0.01, momentum=0.5),
        "epochs": 6,
        "num_batches": 4,
        "batch_size": 8,
        "validation": {"x": np.ones(4), "y": np.full(4, 2.0)},
        "progress_bar": False,
    }
    key, start = options.pop("key", random.key(0)), options.pop("start", jnp.zeros(()))
    options = defaults | options
    return train(key, squared, start, dataset, checkpoint_dir=directory, **options)


def crashed(dataset, directory, after, **options):
    with after_epochs(after, crash), pytest.raises(CrashError):
        run(dataset, directory, **options)


def assert_same(first, second):
    np.testing.assert_array_equal(first[0], second[0])
    for name in ("loss", "validation_loss", "best_epoch", "num_steps", "num_simulations"):
        np.testing.assert_array_equal(getattr(first[1], name), getattr(second[1], name))


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory):
    path = tmp_path_factory.mktemp("disk") / "bank"  # chunks that do not fit the loads
    to_disk(Line(), random.key(9), 100, path, chunk_size=13, progress_bar=False)
    return path


DATASETS = {
    "online": lambda path: OnlineDataset(Line()),
    "bank": lambda path: OfflineDataset(BANK),
    "host": lambda path: HostDataset(Points(), memory=LOAD),
    "disk": lambda path: DiskDataset(path, memory=LOAD),
    "disk, held out": lambda path: DiskDataset(path, memory=LOAD).split(random.key(1), 20)[0],
}


@pytest.mark.parametrize("name", others_verified(DATASETS, {"online", "bank", "disk, held out"}))
def test_a_run_that_was_cut_off_twice(name, on_disk, tmp_path):
    expected = run(DATASETS[name](on_disk))
    # a crash before the checkpoint of an epoch loses that epoch
    crashed(DATASETS[name](on_disk), tmp_path / "run", 3)
    crashed(DATASETS[name](on_disk), tmp_path / "run", 3)
    assert sorted(os.listdir(tmp_path / "run")) == ["epoch_000003", "epoch_000004"]
    assert_same(run(DATASETS[name](on_disk), tmp_path / "run"), expected)
    assert sorted(os.listdir(tmp_path / "run")) == ["epoch_000005", "epoch_000006"]
    # a run that is finished is only read again
    with after_epochs(1, crash):
        assert_same(run(DATASETS[name](on_disk), tmp_path / "run"), expected)


def test_simulations_before_the_checkpoint_are_not_made_again(tmp_path):
    crashed(HostDataset(Points()), tmp_path / "run", 5)
    again = Points()
    run(HostDataset(again), tmp_path / "run")
    assert len(again.calls) == 2 * 4


def test_without_validation_and_with_a_key_in_the_optimizer(tmp_path):
    noisy = optax.chain(optax.add_noise(0.1, 0.5, random.key(3)), optax.sgd(1e-3))
    options = {"validation": None, "optimizer": noisy}
    expected = run(OnlineDataset(Line()), **options)
    crashed(OnlineDataset(Line()), tmp_path / "run", 4, **options)
    assert_same(run(OnlineDataset(Line()), tmp_path / "run", **options), expected)


def test_checkpoints_are_few_where_epochs_are_short(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "_COST", 1e9)
    run(OnlineDataset(Line()), tmp_path / "run")  # the first one and the last one
    assert sorted(os.listdir(tmp_path / "run")) == ["epoch_000001", "epoch_000006"]


def test_only_what_changes_is_kept():
    approximator = untrained()
    bank = approximator.source.sample(random.key(0), 10)
    moved = training_inputs(
        random.key(0), approximator._recipe, bank, validation=0, num_moves=1, workers=None
    )[0]
    assert len(changing(moved)) == 2  # positions and densities of the chains, not the data
    assert changing(OfflineDataset(BANK)) == []


@pytest.fixture(scope="module")
def uninterrupted():
    return parameters(fit())


def kill_and_resume(directory, seed, num_kills):
    rng = python_random.Random(seed)
    command = [sys.executable, "-m", "tests.interrupted", str(directory)]
    for number in range(num_kills):
        process = subprocess.Popen(command, cwd=Path(__file__).parents[1])
        before = number and max(directory.iterdir(), key=lambda path: path.name)
        while process.poll() is None and not any(
            path != before for path in directory.glob("epoch_*")
        ):
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.5))  # of epochs that take about 0.1 seconds, with checkpoints
        process.send_signal(signal.SIGKILL)
        process.wait()
    return fit(directory)


@pytest.mark.verify
def test_killed_at_ten_random_moments(uninterrupted, tmp_path):
    resumed = parameters(kill_and_resume(tmp_path / "run", 10, 10))
    for x, y in zip(uninterrupted, resumed, strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.verify
def test_an_interruption_keeps_what_was_learnt(uninterrupted, tmp_path):
    approximator = untrained()
    with after_epochs(4, interrupt), pytest.raises(KeyboardInterrupt) as caught:
        fit(tmp_path / "run", approximator)
    assert "4 of 25 epochs" in caught.value.__notes__[0]
    assert approximator.sample(random.key(1), 2, {"y": np.zeros(4)})["mu"].shape == (2,)
    # training goes on where it was: from the checkpoint, not from the parameters kept
    fit(tmp_path / "run", approximator)
    for x, y in zip(uninterrupted, parameters(approximator), strict=True):
        np.testing.assert_array_equal(x, y)


def test_an_interruption_gives_the_best_parameters_so_far():
    kept = []
    with after_epochs(4, interrupt), pytest.raises(KeyboardInterrupt):
        run(OnlineDataset(Line()), keep=kept.append)
    best = run(OnlineDataset(Line()), epochs=4)[0]
    np.testing.assert_array_equal(kept, [best])


def test_an_interruption_before_the_end_of_an_epoch_keeps_nothing():
    kept = []
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training, "_total", lambda parts: interrupt())
        run(OnlineDataset(Line()), keep=kept.append)
    assert not kept


@pytest.mark.parametrize("damage", ["truncated", "removed", "all"])
def test_a_damaged_checkpoint(damage, tmp_path):
    expected = run(OnlineDataset(Line()))
    crashed(OnlineDataset(Line()), tmp_path / "run", 4)
    last, *others = sorted((tmp_path / "run").iterdir(), reverse=True)
    damaged = [last, *others][: None if damage == "all" else 1]
    for path in damaged:
        if damage == "removed":
            (path / "manifest.json").unlink()
        else:
            file = path / "configuration.json"
            os.truncate(file, file.stat().st_size - 1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = run(OnlineDataset(Line()), tmp_path / "run")
    messages = [str(warning.message) for warning in caught]
    assert len(messages) == len(damaged)
    for path, message in zip(damaged, messages, strict=True):
        assert str(path) in message and "is damaged" in message and "one before it" in message
    assert_same(result, expected)
    run(OnlineDataset(Line()), tmp_path / "run")  # nothing that was damaged is left


OTHERS = {
    "rng_key": {"key": random.key(1)},
    "epochs": {"epochs": 7},
    "num_batches": {"num_batches": 3},
    "batch_size": {"batch_size": 7},
    "state": {"optimizer": optax.adam(0.1)},
    "dataset": {"dataset": OnlineDataset(Line())},
    "num_simulations": {"dataset": OfflineDataset(Points().sample(random.key(0), 39))},
    "simulations": {"dataset": OfflineDataset(Points().sample(random.key(1), 40))},
    "validation": {"validation": {"x": np.ones(5), "y": np.full(5, 2.0)}},
}


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    directory = tmp_path_factory.mktemp("begun") / "run"
    crashed(OfflineDataset(BANK), directory, 2)
    return directory


@pytest.mark.parametrize("name", OTHERS)
def test_another_run_is_refused(name, begun):
    options = {"dataset": OfflineDataset(BANK)} | OTHERS[name]
    with raises(ValueError, "checkpoint_dir", str(begun), f"the run there has {name} ", "got"):
        run(directory=begun, **options)


def test_a_finished_run_is_not_trained_any_further(tmp_path):
    end, _ = run(OfflineDataset(BANK), tmp_path / "run")
    with raises(ValueError, "the run there has parameters"):
        run(OfflineDataset(BANK), tmp_path / "run", start=end)


def test_paths(tmp_path):
    (tmp_path / "file").write_text("mine")
    with raises(FileExistsError, "checkpoint_dir", str(tmp_path), "other files"):
        run(OfflineDataset(BANK), tmp_path)
    with raises(FileExistsError, "checkpoint_dir", str(tmp_path / "file")):
        run(OfflineDataset(BANK), tmp_path / "file")
    with raises(OSError, "saving failed", str(tmp_path / "file" / "below")):
        run(OfflineDataset(BANK), tmp_path / "file" / "below")
    assert (tmp_path / "file").read_text() == "mine"
