# SPDX-License-Identifier: Apache-2.0
"""The training loop: simulate, adapt, differentiate and update in one XLA program."""

import dataclasses
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax, random
from tqdm.auto import tqdm

from numpyro_amortized.checkpoints import Checkpoints, Snapshot, changing, describe_run
from numpyro_amortized.datasets import Batch, Dataset, finite_rows
from numpyro_amortized.loads import Load, Schedule
from numpyro_amortized.sharding import localize, replicate, replicated, split_rows
from numpyro_amortized.streamed import StreamedDataset

Params = Any
Carry = tuple[Params, optax.OptState]
LossFn = Callable[[Params, Array, Batch], Array]


@dataclasses.dataclass(frozen=True)
class History:
    """What happened in one call of ``fit``.

    :param loss: mean training loss of each epoch.
    :param validation_loss: of each epoch, ``nan`` without validation data.
    :param best_epoch: the epoch (from 0) whose parameters were kept.
    :param num_steps: optimizer steps taken.
    :param num_simulations: simulations seen, repetitions counted.
    :param skipped_simulations: those left out since a value or loss was not finite.
    :param skipped_steps: steps left out since a gradient was not finite.
    :param seconds: duration of each epoch; the first one compiles.
    """

    loss: np.ndarray
    validation_loss: np.ndarray
    best_epoch: int
    num_steps: int
    num_simulations: int
    skipped_simulations: int
    skipped_steps: int
    seconds: np.ndarray


class TrainState(NamedTuple):
    """What the loop carries from step to step, and the best parameters so far."""

    params: Params
    opt_state: optax.OptState
    best_params: Params
    best_loss: Array


class Progress(NamedTuple):
    """A run at the end of an epoch."""

    state: TrainState
    arrays: Any  # of the data set
    rows: "list[Metrics]"  # of each epoch so far
    seconds: list[float]
    num_loads: int


class Metrics(NamedTuple):
    """Sums over a load or an epoch."""

    loss: Array  # of the simulations in steps that were not skipped
    counted: Array  # those simulations
    used: Array  # simulations with finite values and losses
    skipped_steps: Array
    validation_loss: Array


def default_optimizer(
    num_steps: int, *, learning_rate: float = 2e-3, weight_decay: float = 1e-4
) -> optax.GradientTransformation:
    """AdamW with clipped gradients, warm-up and cosine decay.

    :param num_steps: length of the schedule.
    :param learning_rate: its peak.
    :param weight_decay: decoupled.
    """
    schedule = default_schedule(num_steps, learning_rate)
    return optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=weight_decay)
    )


def default_schedule(num_steps: int, learning_rate: float) -> optax.Schedule:
    """:return: learning rates that warm up to the given one, then decay by a cosine."""
    return optax.warmup_cosine_decay_schedule(
        init_value=0.05 * learning_rate,
        peak_value=learning_rate,
        warmup_steps=max(1, min(num_steps // 20, 200)),
        decay_steps=max(2, num_steps),
        end_value=1e-3 * learning_rate,
    )


def train(
    rng_key: Array,
    loss_fn: LossFn,
    params: Params,
    dataset: Dataset,
    *,
    optimizer: optax.GradientTransformation,
    epochs: int,
    num_batches: int,
    batch_size: int,
    validation: Batch | None,
    progress_bar: bool,
    checkpoint_dir: Path | None = None,
    keep: Callable[[Params], None] | None = None,
) -> tuple[Params, History]:
    """Minimize the mean loss.

    :param rng_key: a key.
    :param loss_fn: ``(params, rng_key, batch) -> (batch_size,)`` losses.
    :param params: initial parameters, not changed.
    :param dataset: batches of network inputs.
    :param optimizer: an Optax optimizer.
    :param epochs: number of epochs; the host looks once in each.
    :param num_batches: steps of an epoch.
    :param batch_size: simulations of a step.
    :param validation: network inputs that decide which epoch's parameters are kept.
    :param progress_bar: whether to show one.
    :param checkpoint_dir: where the run is kept, and gone on with where it was cut off.
    :param keep: called with the best parameters so far where the user interrupts.
    :return: the parameters of the epoch with the least validation loss, and the history.
    :raises ValueError: where most simulations of an epoch are not finite, or another run was kept
        in ``checkpoint_dir``.
    :raises FloatingPointError: where most gradients of an epoch are not finite.
    """
    schedule = Schedule(epochs, num_batches, batch_size)
    state, arrays = jax.jit(partial(_start, optimizer))(params, dataset.arrays)
    progress = Progress(state, arrays, [], [], 0)
    run = partial(
        jax.jit(
            _run_load,
            static_argnames=("loss_fn", "dataset", "optimizer", "size"),
            donate_argnames=("state", "arrays"),
            out_shardings=replicated(),
        ),
        loss_fn=loss_fn,
        dataset=dataset,
        optimizer=optimizer,
        validation=replicate(validation),
    )
    checkpoints = None
    if checkpoint_dir is not None:
        carried = _carried(dataset, progress)
        about = describe_run(rng_key, params, carried, dataset, schedule, validation)
        checkpoints = Checkpoints(checkpoint_dir, about)
        progress = _resumed(dataset, progress, checkpoints.resume(carried))
    state, arrays = replicate((progress.state, progress.arrays))
    progress = progress._replace(state=state, arrays=arrays)
    schedule = schedule._replace(epochs_done=len(progress.rows))
    learnt = _best(progress)
    try:
        with (
            tqdm(
                total=epochs, initial=len(progress.rows), disable=not progress_bar, unit="epoch"
            ) as bar,
            _loads(rng_key, dataset, schedule) as loads,
        ):
            results = _epochs(run, replicate(rng_key), loads, progress, batch_size)
            for progress in results:
                learnt = _best(progress)
                _check(progress.rows[-1], num_batches, batch_size)
                _report(bar, progress.rows[-1], num_batches / progress.seconds[-1])
                if checkpoints is not None:
                    is_last = len(progress.rows) == epochs
                    checkpoints.write(_snapshot(dataset, progress), is_last=is_last)
    except KeyboardInterrupt as error:
        if keep is not None and learnt is not None:
            keep(learnt)
            error.add_note(
                f"The best parameters of the first {len(progress.rows)} of {epochs} epochs are "
                "kept, so the approximator can be used."
            )
        raise
    return _result(progress.state, progress.rows, progress.seconds, (num_batches, batch_size))


def _epochs(
    run: Callable[..., tuple[TrainState, Any, Metrics]],
    rng_key: Array,
    loads: Iterator[Load],
    progress: Progress,
    batch_size: int,
) -> Iterator[Progress]:
    """The run after each further epoch."""
    state, arrays, rows, seconds, done = progress
    parts: list[Metrics] = []
    start = time.perf_counter()
    for index, load in enumerate(loads, start=done):
        state, arrays, metrics = run(
            state,
            rng_key,
            np.int32(index),
            np.int32(load.num_steps),
            load.ends_epoch,
            arrays=arrays,
            load=replicate(load.arrays),
            size=(load.size, batch_size),
        )
        # only now may the thread begin another load: two of them are held, not more
        parts.append(jax.block_until_ready(metrics))
        if load.ends_epoch:
            rows, seconds = [*rows, _total(parts)], [*seconds, time.perf_counter() - start]
            yield Progress(state, arrays, rows, seconds, index + 1)
            parts, start = [], time.perf_counter()


def _best(progress: Progress) -> Params | None:
    """The best parameters so far, copied, since the next dispatch takes the state away."""
    best = localize(progress.state.best_params) if progress.rows else None
    return jax.tree.map(jnp.copy, best)


def _carried(dataset: Dataset, progress: Progress) -> tuple[TrainState, list[Array]]:
    """What changes in the loop."""
    arrays = jax.tree.leaves(progress.arrays)
    return progress.state, [arrays[place] for place in changing(dataset)]


def _snapshot(dataset: Dataset, progress: Progress) -> Snapshot:
    rows = tuple(np.stack(column) for column in zip(*progress.rows, strict=True))
    seconds = np.array(progress.seconds)
    return Snapshot(_carried(dataset, progress), rows, seconds, progress.num_loads)


def _resumed(dataset: Dataset, progress: Progress, snapshot: Snapshot | None) -> Progress:
    """The run where it was cut off, or as it is where there is no checkpoint."""
    if snapshot is None:
        return progress
    state, changed = snapshot.carried
    arrays, structure = jax.tree.flatten(progress.arrays)
    for place, array in zip(changing(dataset), changed, strict=True):
        arrays[place] = array
    rows = [Metrics(*row) for row in zip(*snapshot.rows, strict=True)]
    return Progress(
        state,
        jax.tree.unflatten(structure, arrays),
        rows,
        snapshot.seconds.tolist(),
        snapshot.num_loads,
    )


def _loads(
    rng_key: Array, dataset: Dataset, schedule: Schedule
) -> AbstractContextManager[Iterator[Load]]:
    """What each dispatch works on: an epoch, unless the host feeds less at a time."""
    if isinstance(dataset, StreamedDataset) and schedule.epochs_done < schedule.epochs:
        return dataset.loads(random.fold_in(rng_key, np.uint32(2**32 - 1)), schedule)
    num_batches, epochs = schedule.num_batches, schedule.epochs - schedule.epochs_done
    return nullcontext(repeat(Load(None, num_batches, num_batches, True), epochs))


def _start(
    optimizer: optax.GradientTransformation, params: Params, arrays: Any
) -> tuple[TrainState, Any]:
    """State and arrays of the loop's own, since it donates them."""
    best_loss = jnp.full((), jnp.inf, jnp.result_type(float))
    params = jax.tree.map(jnp.copy, params)
    best_params = jax.tree.map(jnp.copy, params)
    opt_state = jax.tree.map(_strong, optimizer.init(params))
    state = TrainState(params, opt_state, best_params, best_loss)
    return state, jax.tree.map(jnp.copy, arrays)


def _strong(x: Array) -> Array:
    """Without a weak type: it would be lost in a checkpoint, and the program would be another."""
    dtype = jnp.result_type(x)
    is_number = jnp.issubdtype(dtype, jnp.number)
    return lax.convert_element_type(x, dtype) if is_number else jnp.asarray(x)


def _run_load(
    state: TrainState,
    rng_key: Array,
    load_index: Array,
    num_steps: Array,
    ends_epoch: Array,
    *,
    arrays: Any,
    load: Batch | None,
    validation: Batch | None,
    loss_fn: LossFn,
    dataset: Dataset,
    optimizer: optax.GradientTransformation,
    size: tuple[int, int],
) -> tuple[TrainState, Any, Metrics]:
    """Take the first ``num_steps`` of ``size`` steps, and validate where an epoch ends."""
    most_steps, batch_size = size
    start_key, step_key, _ = random.split(random.fold_in(rng_key, load_index), 3)
    arrays, epoch = dataset.start(start_key, arrays if load is None else load)

    def step(carry: Carry, index: Array) -> tuple[Carry, tuple[Array, ...]]:
        batch = split_rows(dataset.batch(epoch, index, batch_size))
        loss = partial(_mean_loss, loss_fn, random.fold_in(step_key, index), batch)
        (value, used), grads = jax.value_and_grad(loss, has_aux=True)(carry[0])
        used = jnp.where(index < num_steps, used, 0)
        good = (used > 0) & jnp.isfinite(optax.tree.norm(grads))

        updates, opt_state = optimizer.update(grads, carry[1], carry[0])
        updated = optax.apply_updates(carry[0], updates), opt_state
        carry = jax.tree.map(partial(jnp.where, good), updated, carry)
        return carry, (jnp.where(good, value * used, 0), jnp.where(good, used, 0), used, good)

    (params, opt_state), (sums, counts, used, good) = lax.scan(
        step, (state.params, state.opt_state), jnp.arange(most_steps)
    )
    state = state._replace(params=params, opt_state=opt_state)
    # the same noise at all epochs: the luck of one must not decide which parameters are kept
    validation_key = random.fold_in(rng_key, np.uint32(2**32 - 2))
    state, held_out = _keep_best(state, ends_epoch, loss_fn, validation_key, validation)
    metrics = Metrics(sums.sum(), counts.sum(), used.sum(), num_steps - good.sum(), held_out)
    return state, arrays, metrics


def _keep_best(
    state: TrainState,
    ends_epoch: Array,
    loss_fn: LossFn,
    rng_key: Array,
    validation: Batch | None,
) -> tuple[TrainState, Array]:
    """At the end of an epoch: the parameters with the least validation loss, and that loss."""
    nan = jnp.full_like(state.best_loss, jnp.nan)
    if validation is None:
        return state._replace(best_params=state.params), nan

    def compare() -> tuple[Params, Array, Array]:
        rows = split_rows(validation)
        loss = _mean_loss(loss_fn, rng_key, rows, state.params)[0].astype(nan.dtype)
        better = loss < state.best_loss
        best = jax.tree.map(partial(jnp.where, better), state.params, state.best_params)
        return best, jnp.where(better, loss, state.best_loss), loss

    def keep() -> tuple[Params, Array, Array]:
        return state.best_params, state.best_loss, nan

    best_params, best_loss, loss = lax.cond(ends_epoch, compare, keep)
    return state._replace(best_params=best_params, best_loss=best_loss), loss


def _mean_loss(
    loss_fn: LossFn, rng_key: Array, batch: Batch, params: Params
) -> tuple[Array, Array]:
    """Mean over the simulations with finite values, and their number."""
    usable = finite_rows(batch)
    # zeros instead of what is not finite: a gradient would carry it through the mask
    safe = jax.tree.map(lambda v: jnp.where(_along(usable, v), v, jnp.zeros_like(v)), batch)
    losses = loss_fn(params, rng_key, safe)
    usable &= jnp.isfinite(losses)
    used = usable.sum()
    return jnp.sum(jnp.where(usable, losses, 0)) / jnp.maximum(used, 1), used


def _along(rows: Array, value: Array) -> Array:
    return rows.reshape(rows.shape + (1,) * (value.ndim - 1))


def _total(parts: list[Metrics]) -> Metrics:
    """The mean loss and the sums of an epoch, from those of its loads."""
    parts = jax.device_get(parts)
    loss, counted, used, skipped = (np.sum(values) for values in list(zip(*parts, strict=True))[:4])
    return Metrics(loss / max(counted, 1), counted, used, skipped, parts[-1].validation_loss)


def _check(metrics: Metrics, num_batches: int, batch_size: int) -> None:
    total = num_batches * batch_size
    if metrics.used <= total / 2:
        raise ValueError(
            f"{total - int(metrics.used)} of {total} simulations of an epoch had values or losses "
            "that are not finite. Restrict the priors to values at which the model can be "
            "simulated, or lower the learning rate if this began during training."
        )
    if metrics.skipped_steps > num_batches / 2:
        raise FloatingPointError(
            f"{int(metrics.skipped_steps)} of {num_batches} steps of an epoch had gradients that "
            "are not finite. Lower the learning rate: fit(..., optimizer=optax.adamw(1e-4))."
        )


def _report(bar: tqdm, metrics: Metrics, rate: float) -> None:
    held_out = metrics.validation_loss
    validation = "" if np.isnan(held_out) else f"validation {held_out:.3f}, "
    bar.set_postfix_str(f"loss {metrics.loss:.3f}, {validation}{rate:.0f} steps/s", refresh=False)
    bar.update()


def _result(
    state: TrainState, rows: list[Metrics], seconds: list[float], size: tuple[int, int]
) -> tuple[Params, History]:
    num_batches, batch_size = size
    held_out = np.array([row.validation_loss for row in rows])
    seen = len(rows) * num_batches * batch_size
    history = History(
        loss=np.array([row.loss for row in rows]),
        validation_loss=held_out,
        best_epoch=len(rows) - 1 if np.isnan(held_out).all() else int(np.nanargmin(held_out)),
        num_steps=len(rows) * num_batches,
        num_simulations=seen,
        skipped_simulations=seen - int(sum(row.used for row in rows)),
        skipped_steps=int(sum(row.skipped_steps for row in rows)),
        seconds=np.array(seconds),
    )
    return localize(state.best_params), history
