# SPDX-License-Identifier: Apache-2.0
"""Banks on disk: what is written, what is found damaged, and training from them."""

import errno
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import zarr
from jax import random

from numpyro_amortized.bank import ARRAYS, HEADER, LOG, DamagedChunkError
from numpyro_amortized.datasets import OfflineDataset
from numpyro_amortized.disk import DiskDataset, to_disk
from numpyro_amortized.loads import Schedule
from numpyro_amortized.simulators.base import Simulator, TraceableSimulator
from numpyro_amortized.training import train
from tests.test_datasets import prefetching

NUM, CHUNK = 23, 5  # the last chunk has three
KEY = random.key(4)


class Model(TraceableSimulator):
    """A scalar, a matrix, a count and a flag."""

    def __init__(self, scale=1.0):
        self.scale = scale

    def simulate(self, rng_key):
        mu = self.scale * random.normal(rng_key)
        noise = random.normal(random.fold_in(rng_key, 1), (3, 2))
        count = random.poisson(random.fold_in(rng_key, 2), 3.0)
        return {"mu": mu, "y": mu + noise, "a/n": count, "flag": mu > 0}


MODEL = Model()  # one, which compiles once


class Failing(Simulator):
    """Fails in its last call."""

    def __init__(self, num_calls):
        self.calls = iter(range(num_calls - 1))

    def sample(self, rng_key, batch_shape, *, workers=None):
        if next(self.calls, None) is None:
            raise RuntimeError("the machine broke down")
        return MODEL.sample(rng_key, batch_shape)


def write(path, simulator=None, key=KEY, num=NUM, chunk_size=CHUNK):
    return to_disk(simulator or MODEL, key, num, path, chunk_size=chunk_size, progress_bar=False)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    path = tmp_path_factory.mktemp("banks") / "original"
    write(path)
    return path


@pytest.fixture
def bank(original, tmp_path):
    """A copy to be damaged."""
    return Path(shutil.copytree(original, tmp_path / "bank"))


def files(path):
    """Every file of the arrays, to its bytes."""
    return {p.relative_to(path): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def chunk_file(path, name, chunk):
    place = path / ARRAYS / name / "c" / str(chunk)
    return next((p for p in place.rglob("*") if p.is_file()), place)


def everything(dataset, seed=0):
    """The simulations of one pass, in the order of the counts that number them."""
    with dataset.loads(random.key(seed), Schedule(1, len(dataset), 1)) as loads:
        parts = [jax.tree.map(lambda v, n=load.num_steps: v[:n], load.arrays) for load in loads]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def test_a_bank_has_the_draws_of_its_chunks(original):
    group = zarr.open_group(original / ARRAYS, mode="r")
    chunks_key = random.split(KEY)[1]
    sizes = [CHUNK] * (NUM // CHUNK) + [NUM % CHUNK]
    draws = [MODEL.sample(random.fold_in(chunks_key, i), n) for i, n in enumerate(sizes)]
    for name in ("mu", "y", "a/n", "flag"):
        stored = group[name.replace("/", "%2F")]
        expected = np.concatenate([draw[name] for draw in draws])
        assert stored.dtype == expected.dtype
        np.testing.assert_array_equal(stored[:], expected)
        assert stored.metadata.dimension_names[0] == "simulation"


def test_the_data_set_describes_itself(original):
    dataset = DiskDataset(str(original))
    assert len(dataset) == NUM
    assert set(dataset.names) == {"mu", "y", "a/n", "flag"}
    assert dataset.shapes == {"mu": (), "y": (3, 2), "a/n": (), "flag": ()}
    kinds = {name: dtype.kind for name, dtype in dataset.dtypes.items()}
    assert kinds == {"mu": "f", "y": "f", "a/n": "i", "flag": "b"}
    for number in (1, CHUNK + 1, NUM, NUM + 1):
        first = dataset.select("mu", "y").map(summed).head(number)
        assert {name: len(value) for name, value in first.items()} == dict.fromkeys(
            ("mu", "sum"), min(number, NUM)
        )


@pytest.mark.parametrize("num_calls", range(1, 7))  # a pilot and five chunks
def test_resumed_after_the_simulator_failed(original, tmp_path, num_calls):
    path = tmp_path / "bank"
    with pytest.raises(RuntimeError, match="broke down"):
        write(path, Failing(num_calls))
    if num_calls > 1:
        with pytest.raises(ValueError, match=rf"{7 - num_calls} of 5 chunks are missing.*again"):
            DiskDataset(path)
    write(path)
    assert files(path) == files(original)


@pytest.mark.parametrize("entry", ["mu", "flag"])
def test_resumed_after_a_full_disk(original, tmp_path, monkeypatch, entry):
    path, store = tmp_path / "bank", zarr.Array.__setitem__

    def fill(array, selection, value):
        if selection.start == 10 and str(array.store_path).endswith(entry):
            raise OSError(errno.ENOSPC, "No space left on device")
        store(array, selection, value)

    monkeypatch.setattr(zarr.Array, "__setitem__", fill)
    with pytest.raises(OSError, match=r"No space left on device.*again.*bank") as caught:
        write(path)
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(path)
    monkeypatch.undo()
    write(path)
    assert files(path) == files(original)


def test_resumed_after_a_torn_line_and_leftovers(original, bank):
    lines = (bank / LOG).read_bytes()
    os.truncate(bank / LOG, len(lines) - 7)
    leftover = chunk_file(bank, "mu", 4).with_suffix(".1234.partial")
    leftover.write_bytes(b"half")
    with pytest.raises(ValueError, match="1 of 5 chunks are missing"):
        DiskDataset(bank)
    write(bank)
    assert files(bank) == files(original)


def test_resumed_after_the_directory_was_half_made(original, tmp_path):
    (tmp_path / "bank.partial").mkdir()
    (tmp_path / "bank.partial" / HEADER).write_text("{")
    (tmp_path / "bank").mkdir()  # empty: that is fine
    write(tmp_path / "bank")
    assert files(tmp_path / "bank") == files(original)
    assert [p.name for p in tmp_path.iterdir()] == ["bank"]


@pytest.mark.verify
def test_resumed_after_the_process_was_killed(original, tmp_path):
    script = f"""
        import os, signal
        from tests.test_disk import MODEL, Simulator, write

        class Killed(Simulator):
            calls = 0
            def sample(self, rng_key, batch_shape, *, workers=None):
                self.calls += 1
                if self.calls == 4:
                    os.kill(os.getpid(), signal.SIGKILL)
                return MODEL.sample(rng_key, batch_shape)

        write({str(tmp_path / "bank")!r}, Killed())
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    environment = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # which change last bits
    killed = subprocess.run(command, cwd=Path(__file__).parents[1], env=environment, check=False)
    assert killed.returncode == -9
    with pytest.raises(ValueError, match="3 of 5 chunks are missing"):
        DiskDataset(tmp_path / "bank")
    write(tmp_path / "bank")
    assert files(tmp_path / "bank") == files(original)


@pytest.mark.parametrize("num", [20, 22])
def test_an_extended_bank_is_one_drawn_at_once(original, tmp_path, num):
    write(tmp_path / "bank", num=num)
    assert len(DiskDataset(tmp_path / "bank")) == num
    # by default in the chunks that it has
    assert len(write(tmp_path / "bank", chunk_size=None)) == NUM
    assert files(tmp_path / "bank" / ARRAYS) == files(original / ARRAYS)


def test_complete_banks_are_left_as_they_are(original):
    before = files(original)
    write(original)
    assert files(original) == before


@pytest.mark.parametrize(
    "change, message",
    [
        ({"key": random.key(5)}, "has rng_key .*0, 4.*got .*0, 5"),
        ({"num": NUM - 1}, "has 23 simulations, got num_simulations=22.*only grow"),
        ({"chunk_size": 6}, "has chunk_size 5, got 6"),
        ({"simulator": Model(scale=2.0)}, "entry 'mu'.*first draw.*another model"),
    ],
)
def test_other_arguments_for_a_bank(original, change, message):
    before = files(original)
    with pytest.raises(ValueError, match=f"original.*{message}"):
        write(original, **change)
    assert files(original) == before


def test_other_entries_for_a_bank(original):
    class Other(TraceableSimulator):
        def simulate(self, rng_key):
            return {"mu": random.normal(rng_key, (2,))}

    with pytest.raises(ValueError, match=r"original.*has entries .*got {'mu': \(\(2,\)"):
        write(original, Other())


def test_shapes_that_change_between_chunks(tmp_path):
    class Ragged(Simulator):
        def sample(self, rng_key, batch_shape, *, workers=None):
            return {"x": np.zeros((batch_shape, 2 if batch_shape == 1 else 3))}

    with pytest.raises(ValueError, match=r"entry 'x': expected shape \(2,\).*got \(3,\)"):
        write(tmp_path / "bank", Ragged())


@pytest.mark.parametrize(
    "options", [{"num": 0}, {"num": 2.5}, {"chunk_size": 0}, {"num": True}], ids=str
)
def test_sizes_that_are_none(tmp_path, options):
    with pytest.raises(ValueError, match="expected an integer of at least 1"):
        write(tmp_path / "bank", **options)
    assert not any(tmp_path.iterdir())


def test_without_zarr(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "zarr", None)
    with pytest.raises(ImportError, match=r"pip install 'numpyro_amortized\[disk\]'"):
        write(tmp_path / "bank")


def test_places_that_are_no_banks(tmp_path):
    (tmp_path / "file").write_text("something")
    with pytest.raises(FileExistsError, match=r"file: expected a new path.*got a file"):
        write(tmp_path / "file")
    with pytest.raises(FileExistsError, match=r"expected a new path.*directory with other files"):
        write(tmp_path)
    with pytest.raises(NotADirectoryError, match=r"writing the bank failed.*inside"):
        write(tmp_path / "file" / "inside")
    assert (tmp_path / "file").read_text() == "something"
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(FileNotFoundError, match=rf"{path}.*expected a bank.*to_disk"):
            DiskDataset(path)


@pytest.mark.parametrize("text", ["{", "[]", '{"version": 1}', '{"version": 2, "entries": {}}'])
def test_headers_that_cannot_be_read(bank, text):
    (bank / HEADER).write_text(text)
    with pytest.raises(ValueError, match=r"bank\.json: not the header of a bank"):
        DiskDataset(bank)


def damage(path, how):
    target, other = chunk_file(path, "y", 2), chunk_file(path, "y", 1)
    content = bytearray(target.read_bytes())
    if how == "truncated":
        target.write_bytes(content[:-9])
    if how == "emptied":
        target.write_bytes(b"")
    if how == "altered":
        content[len(content) // 2] ^= 1
        target.write_bytes(content)
    if how == "swapped":
        target.write_bytes(other.read_bytes())
    if how == "deleted":
        target.unlink()


@pytest.mark.parametrize("how", ["truncated", "emptied", "altered", "swapped", "deleted"])
def test_damaged_chunks_are_named_and_drawn_anew(original, bank, how):
    damage(bank, how)
    dataset = DiskDataset(bank)
    with pytest.raises(
        DamagedChunkError, match=r"bank: chunk 2 \(simulations 10 to 14\), entry 'y'.*again"
    ):
        everything(dataset)
    assert not prefetching()
    everything(dataset.select("mu"))  # it is not read
    write(bank)
    assert files(bank / ARRAYS) == files(original / ARRAYS)
    everything(DiskDataset(bank))


@pytest.mark.parametrize("memory", [1, 100, 10**9])
def test_every_simulation_once_in_a_pass(original, memory):
    dataset = DiskDataset(original, memory=memory)
    stored = zarr.open_group(original / ARRAYS, mode="r")["mu"][:]
    passes = [everything(dataset, seed) for seed in (0, 0, 1)]
    for values in passes:
        np.testing.assert_array_equal(np.sort(values["mu"]), np.sort(stored))
        np.testing.assert_array_equal(values["flag"], values["mu"] > 0)
    np.testing.assert_array_equal(passes[0]["mu"], passes[1]["mu"])
    assert (passes[0]["mu"] != passes[2]["mu"]).any() and (passes[0]["mu"] != stored).any()


@pytest.mark.parametrize("held_out", [1, 4, 11, 22])
def test_what_is_held_out_is_not_trained_on(original, held_out):
    dataset = DiskDataset(original)
    rest, validation = dataset.split(random.key(0), held_out)
    assert (len(rest), len(validation)) == (NUM - held_out, held_out)
    both = [everything(rest)["mu"], validation.arrays["mu"]]
    np.testing.assert_array_equal(np.sort(np.concatenate(both)), np.sort(everything(dataset)["mu"]))
    if len(rest) > 1:
        last, first = rest.split(random.key(1), 1)
        both = [everything(last)["mu"], first.arrays["mu"], validation.arrays["mu"]]
        assert len(np.unique(np.concatenate(both))) == NUM
    assert len(dataset) == NUM


def test_wrong_entries_and_shares(original):
    dataset = DiskDataset(original)
    assert dataset.select("y", "mu").names == ("y", "mu")
    with pytest.raises(ValueError, match=r"original: no entries \['z'\]; it has \['a/n', 'flag'"):
        dataset.select("z")
    for held_out in (0, NUM):
        with pytest.raises(ValueError, match="expected fewer simulations than the 23"):
            dataset.split(random.key(0), held_out)


def squared(w, key, batch):
    return (batch["mu"] - w[0]) ** 2 + jnp.abs(batch["sum"] - w[1])


OPTIMIZER = optax.sgd(0.05)


def summed(values):
    return {"mu": values["mu"], "sum": values["y"].sum()}


def fitted(dataset, *, epochs=3, num_batches=1, batch_size=NUM):
    return train(
        random.key(0),
        squared,
        jnp.zeros(2),
        dataset.map(summed),
        optimizer=OPTIMIZER,
        epochs=epochs,
        num_batches=num_batches,
        batch_size=batch_size,
        validation=None,
        progress_bar=False,
    )


def test_training_from_disk_is_training_in_memory(original):
    """Batches of the whole bank: the order of its simulations does not matter."""
    dataset = DiskDataset(original)
    memory = OfflineDataset(everything(dataset))
    (from_disk, first), (in_memory, second) = fitted(dataset), fitted(memory)
    np.testing.assert_allclose(from_disk, in_memory, rtol=1e-5)
    np.testing.assert_allclose(first.loss, second.loss, rtol=1e-5)
    assert first.num_simulations == 3 * NUM


def test_one_program_for_all_epochs(original, compilations):
    dataset = DiskDataset(original, memory=4 * 29)  # a pass of 12 batches in six loads
    mapped = dataset.map(summed)

    def run(epochs):
        return train(
            random.key(0),
            squared,
            jnp.zeros(2),
            mapped,
            optimizer=OPTIMIZER,
            epochs=epochs,
            num_batches=12,
            batch_size=2,
            validation=None,
            progress_bar=False,
        )

    run(1)
    before = len(compilations)
    assert run(3)[1].num_steps == 36
    assert len(compilations) <= before + 1  # the copy of the initial parameters


def test_damage_stops_the_training(bank):
    damage(bank, "altered")
    with pytest.raises(DamagedChunkError, match="chunk 2"):
        fitted(DiskDataset(bank))
    assert not prefetching()
