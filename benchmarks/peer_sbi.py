# SPDX-License-Identifier: Apache-2.0
"""Child process of the benchmarks: sbi, in an environment of its own."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from sbi.inference import NPE

from benchmarks import protocol


class NeuralPosterior:
    """Neural posterior estimation by a neural spline flow, all else by default.

    :param bounds: of the parameters, shape ``(2, d)``; draws outside are rejected, as by sbi's
        own posteriors where they are given the prior.
    """

    def __init__(self, bounds: np.ndarray) -> None:
        self.low, self.high = torch.from_numpy(bounds)

    def fit(self, theta: np.ndarray, x: np.ndarray) -> dict[str, Any]:
        inference = NPE(density_estimator="nsf", show_progress_bars=False)
        inference.append_simulations(torch.from_numpy(theta), torch.from_numpy(x))
        self.estimator = inference.train()
        [epochs] = inference.summary["epochs_trained"]
        batches = int(0.9 * len(theta)) // 200  # sbi's validation share and batch
        return {
            "parameters": sum(weight.numel() for weight in self.estimator.parameters()),
            "steps": epochs * batches,
        }

    @torch.no_grad()
    def sample(self, num_samples: int, x: np.ndarray) -> np.ndarray:
        return np.stack([self._draws(num_samples, torch.from_numpy(row[None])) for row in x])

    def _draws(self, num_samples: int, x: torch.Tensor) -> np.ndarray:
        kept: list[torch.Tensor] = []
        while sum(map(len, kept)) < num_samples:
            draws = self.estimator.sample((num_samples,), condition=x)[:, 0]
            kept.append(draws[((self.low < draws) & (draws < self.high)).all(-1)])
        return torch.cat(kept)[:num_samples].numpy()

    @torch.no_grad()
    def log_prob(self, theta: np.ndarray, x: np.ndarray) -> np.ndarray:
        values = torch.from_numpy(theta)[None]
        return self.estimator.log_prob(values, condition=torch.from_numpy(x))[0].numpy()


def spline_flow(bank: Path) -> NeuralPosterior:
    with np.load(bank) as arrays:
        return NeuralPosterior(arrays["bounds"])


METHODS = {"default_spline_flow": spline_flow}


if __name__ == "__main__":
    arguments = protocol.parser(methods=list(METHODS)).parse_args()
    torch.manual_seed(arguments.seed)
    protocol.run(METHODS[arguments.method](arguments.bank), arguments)
