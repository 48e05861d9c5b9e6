# SPDX-License-Identifier: Apache-2.0
"""How far amortized posteriors of many data sets are from the exact ones, by their weights."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from jax import Array, random
from jax.typing import ArrayLike

from numpyro_amortized.approximators.conditions import check_num_samples, check_positive
from numpyro_amortized.approximators.density import DensityApproximator, with_density
from numpyro_amortized.diagnostics.labelled import labelled
from numpyro_amortized.diagnostics.simulated import simulations_of
from numpyro_amortized.importance import ImportanceResult, importance_sample
from numpyro_amortized.pareto import largest_k
from numpyro_amortized.simulators.base import typed_key

if TYPE_CHECKING:
    import xarray

__all__ = ["importance_weights"]


def importance_weights(
    rng_key: Array,
    approximator: DensityApproximator,
    conditions: Mapping[str, ArrayLike] | None = None,
    *,
    num_datasets: int = 300,
    num_samples: int = 1000,
    simulations: Mapping[str, ArrayLike] | None = None,
    batch_size: int | None = None,
) -> "xarray.Dataset":
    """Pareto k-hat of the importance weights of each of many data sets [1].

    The weights compare the amortized posterior with the model's own density. Where k-hat is at most
    the threshold, they correct what is left of its errors; where it is above, the posterior is far
    from the exact one, or has tails that are too light: :func:`npa.refine` is for these data sets.
    K-hat does not matter where the weights are nearly equal, see
    :attr:`npa.ImportanceResult.is_reliable`.

    :param rng_key: a key.
    :param approximator: a trained approximator with a density, of a NumPyro model.
    :param conditions: data, one data set or a leading axis of them; by default simulations.
    :param num_datasets: number of data sets to simulate.
    :param num_samples: draws for each of them.
    :param simulations: held-out simulations to use instead of new ones.
    :param batch_size: simulated data sets at a time, which bounds memory; by default all.
    :return: with the dimension ``dataset``: ``pareto_k``; ``is_reliable``; ``efficiency``, the
        effective number of draws divided by their number, of the smoothed weights; and the
        ``log_evidence`` with its standard error ``log_evidence_se``. As attributes the
        ``threshold`` of k-hat, ``min(1 - 1 / log10(num_samples), 0.7)``, and ``num_samples``.
    :raises TypeError: where the approximator has no density, or its source is no model.
    :raises ValueError: where the model's joint density is not known, as by
        :func:`npa.importance_sample`, or ``num_samples`` is at most ten.

    1. Vehtari, Simpson, Gelman, Yao & Gabry (2024), *Pareto smoothed importance sampling*, Journal
       of Machine Learning Research 25.
    """
    approximator, num_samples = with_density(approximator), check_num_samples(num_samples)
    if num_samples <= 10:
        raise ValueError(f"num_samples: expected more than 10 for a tail, got {num_samples}.")
    simulate_key, key = random.split(typed_key(rng_key))
    if conditions is not None:
        parts = [importance_sample(key, approximator, conditions, num_samples)]
    else:
        observed = simulations_of(simulate_key, approximator, num_datasets, simulations).observed
        parts = _by_batches(key, approximator, observed, num_samples, batch_size)
    values = {
        "pareto_k": _joined([part.pareto_k for part in parts]),
        "is_reliable": _joined([part.is_reliable for part in parts]),
        "efficiency": _joined([part.ess for part in parts]) / num_samples,
        "log_evidence": _joined([part.log_evidence for part in parts]),
        "log_evidence_se": _joined([part.log_evidence_se for part in parts]),
    }
    attrs = {"threshold": largest_k(num_samples), "num_samples": num_samples}
    return labelled(values, ["dataset"], attrs=attrs)


def _by_batches(
    rng_key: Array,
    approximator: DensityApproximator,
    observed: Mapping[str, Array],
    num_samples: int,
    batch_size: int | None,
) -> list[ImportanceResult]:
    number = len(next(iter(observed.values())))
    size = number if batch_size is None else batch_size
    check_positive(batch_size=size)
    return [
        importance_sample(
            random.fold_in(rng_key, start),
            approximator,
            {name: value[start : start + size] for name, value in observed.items()},
            num_samples,
        )
        for start in range(0, number, size)
    ]


def _joined(parts: list[Array]) -> np.ndarray:
    return np.concatenate([np.atleast_1d(np.asarray(part)) for part in parts])
