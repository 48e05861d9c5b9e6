# SPDX-License-Identifier: Apache-2.0
"""How well models are told apart: calibration of their probabilities, and Bayes factors."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jax.typing import ArrayLike

from numpyro_amortized.diagnostics.labelled import labelled

if TYPE_CHECKING:
    import xarray

__all__ = ["bayes_factors", "classifier_calibration", "confusion_matrix"]


def classifier_calibration(
    probs: ArrayLike,
    model_indices: ArrayLike,
    *,
    num_bins: int = 10,
    names: Sequence[str] | None = None,
) -> "xarray.Dataset":
    """Whether models are the true ones as often as their probabilities say [1, 2].

    :param probs: of the models for each data set, shape ``(num_datasets, num_models)``.
    :param model_indices: which model each data set came from, one-hot, of the same shape.
    :param num_bins: number of bins of equal width between 0 and 1.
    :param names: those of the models, by default integers.
    :return: with the dimension ``model``: ``expected_calibration_error``, the mean distance of
        probabilities and shares over bins, weighted by the data sets in them. With the dimension
        ``bin`` as well: ``predicted``, ``observed`` and ``count`` of the bins, NaN where they are
        empty. Over all models: ``brier_score``, the mean squared error summed over models, between
        0 and 2.
    :raises ValueError: where shapes or values do not fit.

    1. Naeini, Cooper & Hauskrecht (2015), *Obtaining well calibrated probabilities using Bayesian
       binning*, AAAI.
    2. Brier (1950), *Verification of forecasts expressed in terms of probability*, Monthly Weather
       Review 78.
    """
    predicted, truth = _checked(probs, model_indices)
    bins = np.minimum((predicted * num_bins).astype(int), num_bins - 1)
    members = bins[None] == np.arange(num_bins)[:, None, None]  # (bin, dataset, model)
    count = members.sum(1)
    with np.errstate(invalid="ignore"):
        mean = (members * predicted).sum(1) / count
        share = (members * truth).sum(1) / count
    error = np.sum(np.nan_to_num(np.abs(mean - share)) * count, axis=0) / len(predicted)
    values = {
        "expected_calibration_error": error,
        "predicted": mean.T,
        "observed": share.T,
        "count": count.T,
        "brier_score": np.mean(np.sum((predicted - truth) ** 2, axis=1)),
    }
    binned = dict.fromkeys(["predicted", "observed", "count"], ("model", "bin"))
    dims = binned | {"expected_calibration_error": ("model",)}
    return labelled(values, [], dims, _names(names, predicted.shape[1]))


def confusion_matrix(
    probs: ArrayLike, model_indices: ArrayLike, *, names: Sequence[str] | None = None
) -> "xarray.Dataset":
    """Which model is the most probable one, for each true model.

    :param probs: of the models for each data set, shape ``(num_datasets, num_models)``.
    :param model_indices: which model each data set came from, one-hot, of the same shape.
    :param names: those of the models, by default integers.
    :return: with the dimensions ``true_model`` and ``predicted_model``: ``count``, and ``share`` of
        the true model's data sets, NaN where there are none.
    :raises ValueError: where shapes or values do not fit.
    """
    predicted, truth = _checked(probs, model_indices)
    chosen = np.eye(predicted.shape[1])[predicted.argmax(1)]
    count = (truth.T @ chosen).astype(int)
    with np.errstate(invalid="ignore"):
        share = count / count.sum(1, keepdims=True)
    dims = dict.fromkeys(["count", "share"], ("true_model", "predicted_model"))
    labels = _names(names, len(count)).get("model")
    coords = {} if labels is None else {"true_model": labels, "predicted_model": labels}
    return labelled({"count": count, "share": share}, [], dims, coords)


def bayes_factors(
    probs: ArrayLike,
    log_evidences: ArrayLike,
    *,
    prior_probs: ArrayLike | None = None,
    names: Sequence[str] | None = None,
) -> "xarray.Dataset":
    """Log Bayes factors that probabilities imply, beside those of known evidences.

    :param probs: of the models for each data set, shape ``(num_datasets, num_models)``.
    :param log_evidences: exact log marginal likelihoods, of the same shape.
    :param prior_probs: of the models, shape ``(num_models,)``, by default equal.
    :param names: those of the models, by default integers.
    :return: with the dimensions ``dataset`` and ``model``: ``estimated`` and ``exact`` log Bayes
        factors of each model against the first. With ``model``: their ``rmse``.
    :raises ValueError: where shapes do not fit.
    """
    predicted, exact = np.asarray(probs, float), np.asarray(log_evidences, float)
    if predicted.ndim != 2 or predicted.shape != exact.shape:
        raise ValueError(
            "Expected probs and log_evidences of one shape (num_datasets, num_models), got "
            f"{predicted.shape} and {exact.shape}."
        )
    prior = np.zeros(predicted.shape[1]) if prior_probs is None else np.log(prior_probs)
    with np.errstate(divide="ignore"):
        odds = np.log(predicted) - prior
    estimated, known = odds - odds[:, :1], exact - exact[:, :1]
    rmse = np.sqrt(np.mean((estimated - known) ** 2, axis=0))
    both = ("dataset", "model")
    dims = {"estimated": both, "exact": both, "rmse": both[1:]}
    values = {"estimated": estimated, "exact": known, "rmse": rmse}
    return labelled(values, [], dims, _names(names, predicted.shape[1]))


def _names(names: Sequence[str] | None, num_models: int) -> dict[str, Sequence[str]]:
    if names is not None and len(names) != num_models:
        raise ValueError(f"names: expected {num_models} of them, got {list(names)}.")
    return {} if names is None else {"model": list(names)}


def _checked(probs: ArrayLike, model_indices: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    predicted, truth = np.asarray(probs, float), np.asarray(model_indices, float)
    if predicted.ndim != 2 or predicted.shape != truth.shape:
        raise ValueError(
            "Expected probs and model_indices of one shape (num_datasets, num_models), got "
            f"{predicted.shape} and {truth.shape}."
        )
    if (np.abs(predicted.sum(1) - 1) > 1e-3).any() or (predicted < 0).any():
        raise ValueError("probs: expected probabilities that sum to one over the models.")
    if (truth.sum(1) != 1).any() or not np.isin(truth, [0, 1]).all():
        raise ValueError("model_indices: expected one-hot rows, a one and otherwise zeros.")
    return predicted, truth
