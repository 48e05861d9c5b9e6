# SPDX-License-Identifier: Apache-2.0
"""The code of the documentation runs as it stands there.

A page is one namespace, and its blocks run in order, in a directory of their own. Three things
differ from what a reader sees:

- Trainings are short: whatever a page asks of ``fit``, it is one epoch of at most ten batches.
- Networks that are hardly trained draw from the far tails of a Cauchy prior, so that ArviZ's sums
  of squares may overflow: that warning is no error here.
- A block below a line ``<!-- compiled only: reason -->`` needs what a test has not, such as a
  cluster. It is compiled and not run.
"""

import re
from collections.abc import Iterator
from functools import reduce, wraps
from pathlib import Path
from typing import NamedTuple

import pytest

import numpyro_amortized as npa
from numpyro_amortized.approximators.base import Approximator

pytestmark = pytest.mark.verify
PAGES = sorted((Path(__file__).parents[2] / "docs").glob("*.md"))
SHORT = {"epochs": 1, "num_batches": 10, "progress_bar": False}
INCLUDE = re.compile(
    r"^```\{include\} (\S+)\n:start-after: (.+)\n:end-before: (.+)\n```$", re.MULTILINE
)
BLOCK = re.compile(
    r"^(<!-- compiled only: [^\n]+ -->\n+)?```python\n(.*?)^```$", re.MULTILINE | re.DOTALL
)
NAME = re.compile(r"\bnpa((?:\.[A-Za-z_]\w*)+)")


class Block(NamedTuple):
    """A block of Python, and the line of the page that it follows."""

    source: str
    line: int
    runs: bool


def text(page: Path) -> str:
    """A page with the parts of other files that it includes."""

    def included(match: re.Match[str]) -> str:
        path, start, end = match.groups()
        return (page.parent / path).read_text().split(start, 1)[1].split(end, 1)[0]

    return INCLUDE.sub(included, page.read_text())


def blocks(page: Path) -> Iterator[Block]:
    content = text(page)
    for match in BLOCK.finditer(content):
        marker, source = match.groups()
        yield Block(source, content[: match.start(2)].count("\n"), marker is None)


@pytest.fixture
def short_trainings(monkeypatch):
    fit = Approximator.fit

    @wraps(fit)
    def short(self, rng_key, **options):
        return fit(self, rng_key, **options | SHORT)

    monkeypatch.setattr(Approximator, "fit", short)


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_page(page, tmp_path, monkeypatch, unoptimized, short_trainings):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    namespace = {"__name__": page.stem}
    found = [*blocks(page)]
    assert len(found) == text(page).count("```python")
    for block in found:
        code = compile("\n" * block.line + block.source, page.name, "exec")
        if block.runs:
            exec(code, namespace)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_names_exist(page):
    """Also those in text and tables."""
    for name in set(NAME.findall(text(page))):
        reduce(getattr, name.strip(".").split("."), npa)
