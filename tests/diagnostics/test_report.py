# SPDX-License-Identifier: Apache-2.0
"""Pictures, and the page that shows them."""

import base64
import re
import shutil
import subprocess
from dataclasses import replace

import matplotlib.image
import numpy as np
import pytest
from jax import random

from numpyro_amortized.diagnostics import (
    Check,
    Picture,
    bayes_factors,
    classifier_calibration,
    confusion_matrix,
    loss,
    plot_bayes_factors,
    plot_classifier_calibration,
    plot_confusion_matrix,
    report,
)
from numpyro_amortized.diagnostics.page import page, picture
from numpyro_amortized.training import History
from tests.diagnostics.exact import NormalMean

HISTORY = History(
    np.array([3.0, 2, 1]), np.array([3.0, 1.5, 2]), 1, 30, 300, 0, 0, np.array([1.0, 1, 1])
)
BROWSER = shutil.which("chromium")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Of an exact posterior, with a data set that is unlike all simulations."""
    y = np.stack([np.linspace(-1, 1, 10), np.linspace(29, 31, 10)])
    path = tmp_path_factory.mktemp("report") / "report.html"
    options = {"num_datasets": 300, "num_samples": 400, "progress_bar": False}
    return report(random.key(1), NormalMean(), {"y": y}, path=path, history=HISTORY, **options)


def test_verdicts_of_the_exact_posterior(written):
    outcomes = {check.title: check.passed for check in written.checks}
    assert outcomes == {
        "Simulation-based calibration": True,
        "Coverage of intervals": True,
        "TARP": True,
        "Recovery": None,
        "Contraction and z-scores": None,
        "Your data": False,
        "Importance weights": None,
        "Training": None,
    }
    assert not written.passed
    assert "data sets [1] of 2" in written.checks[5].verdict


def test_the_page_has_every_picture_and_no_address(written):
    text = written.path.read_text()
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', text)
    assert len(pictures) == sum(len(check.pictures) for check in written.checks) == 9
    assert all(base64.b64decode(data).startswith(b"\x89PNG") for data in pictures)
    assert "http" not in text and text.count("src=") == 9 and "<link" not in text
    for check in written.checks:
        assert check.verdict in text


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
def test_a_browser_shows_every_picture(written, tmp_path):
    script = (
        "<script>onload = () => { document.title = [...document.images].filter("
        "i => i.complete && i.naturalWidth > 100).length + ' loaded' }</script></body>"
    )
    path = tmp_path / "page.html"
    path.write_text(written.path.read_text().replace("</body>", script))
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    options = {"capture_output": True, "text": True, "timeout": 60, "check": True}
    shown = subprocess.run([*command, f"--user-data-dir={tmp_path}", path.as_uri()], **options)
    assert "<title>9 loaded</title>" in shown.stdout


@pytest.mark.verify
def test_verdicts_of_a_narrow_posterior(tmp_path, capsys):
    path = tmp_path / "report.html"
    result = report(
        random.key(1), NormalMean(scale=0.7), path=path, num_datasets=300, num_samples=400
    )
    calibration, intervals, balls = result.checks[:3]
    assert not calibration.passed and "draws of mu are too narrow" in calibration.verdict
    assert not intervals.passed and not balls.passed
    assert "Failed: Simulation-based calibration" in path.read_text()
    assert "100%" in capsys.readouterr().err  # the progress bar


def test_names_are_escaped():
    text = page("<a>", "<b>", [Check("<c>", False, "<d>", (Picture(b"", "<e>"),))])
    assert not re.search("<[abcde]>", text.replace("<b>", "", 0))


def drawn(collection, path):
    path.write_bytes(picture(collection, "").png)
    return matplotlib.image.imread(path)


def test_loss_marks_the_epoch_that_was_kept(tmp_path):
    collection = loss(HISTORY, backend="matplotlib")
    mark = collection.viz["kept"]["loss"].item().get_offsets()
    np.testing.assert_allclose(mark, [[1, 1.5]])
    assert drawn(collection, tmp_path / "loss.png").std() > 0
    alone = replace(HISTORY, validation_loss=np.full(3, np.nan), best_epoch=2)
    collection = loss(alone, backend="matplotlib")
    np.testing.assert_allclose(collection.viz["kept"]["loss"].item().get_offsets(), [[2, 1]])
    drawn(collection, tmp_path / "alone.png")


def test_plot_of_classifier_calibration(tmp_path):
    probs = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.9, 0.1]])
    truth = np.array([[1, 0], [0, 1], [0, 1], [1, 0]])
    result = classifier_calibration(probs, truth, num_bins=2)
    collection = plot_classifier_calibration(result, backend="matplotlib")
    points = collection.viz["points"]["0"].item().get_offsets()
    np.testing.assert_allclose(points, [[0.3, 0], [2.6 / 3, 2 / 3]])
    drawn(collection, tmp_path / "calibration.png")


def test_plot_of_a_confusion_matrix(tmp_path):
    probs = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.9, 0.1]])
    truth = np.array([[1, 0], [0, 1], [0, 1], [1, 0]])
    result = confusion_matrix(probs, truth, names=["a", "b"])
    collection = plot_confusion_matrix(result, backend="matplotlib")
    where = {"true_model": "b", "predicted_model": "a"}
    assert collection.viz["number"]["share"].sel(where).item().get_text() == "0.50"
    assert drawn(collection, tmp_path / "confusion.png").std() > 0


def test_plot_of_bayes_factors(tmp_path):
    evidences = np.log([[3.0, 1.0], [1.0, 2.0]])
    probs = np.array([[0.9, 0.1], [0.6, 0.4]])
    collection = plot_bayes_factors(bayes_factors(probs, evidences), backend="matplotlib")
    points = collection.viz["points"]["1"].item().get_offsets()
    expected = [[np.log(1 / 3), np.log(1 / 9)], [np.log(2), np.log(2 / 3)]]
    np.testing.assert_allclose(points, expected)
    drawn(collection, tmp_path / "factors.png")
