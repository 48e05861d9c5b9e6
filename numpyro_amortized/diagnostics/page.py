# SPDX-License-Identifier: Apache-2.0
"""A page of checks, with everything that it shows inside of it."""

import base64
import io
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from arviz_plots import PlotCollection

__all__ = ["Check", "Picture", "page", "picture"]

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem;
       color: #1a1a1a; background: #fff; }
section { border-top: 1px solid #ccc; padding-top: .5rem; margin-top: 2rem; }
img { max-width: 100%; height: auto; }
figure { margin: 1rem 0; }
figcaption { color: #555; font-size: .9rem; }
.verdict { padding: .5rem .8rem; border-left: .4rem solid #777; background: #f3f3f3; }
.passes { border-color: #1b7f3b; background: #e9f6ed; }
.fails { border-color: #b3261e; background: #fbeae9; }
"""


class Picture(NamedTuple):
    """A picture as a PNG, and what it shows."""

    png: bytes
    caption: str


class Check(NamedTuple):
    """One check of an approximator.

    :param title: its name.
    :param passed: whether it passed; ``None`` where it measures something and cannot fail.
    :param verdict: the outcome in words.
    :param pictures: those that show it.
    """

    title: str
    passed: bool | None
    verdict: str
    pictures: tuple[Picture, ...] = ()


def picture(collection: "PlotCollection", caption: str) -> Picture:
    """Draws a plot of Matplotlib's and closes it."""
    import matplotlib.pyplot as plt

    figure = collection.viz["figure"].item()
    figure.set_layout_engine("constrained")  # labels of one panel must not cover another
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    plt.close(figure)
    return Picture(buffer.getvalue(), caption)


def page(title: str, description: str, checks: Sequence[Check]) -> str:
    """
    A page in HTML without external addresses.

    :param title: of the page.
    :param description: text that is shown as it is.
    :param checks: in their order.
    """
    failed = [check.title for check in checks if check.passed is False]
    number = sum(check.passed is not None for check in checks)
    summary = f"Failed: {', '.join(failed)}." if failed else f"All {number} tests passed."
    body = "\n".join(_section(check) for check in checks)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>{escape(title)}</h1>
<p class="verdict {"fails" if failed else "passes"}">{escape(summary)}</p>
{body}
<section><h2>Approximator</h2><pre>{escape(description)}</pre></section>
</body>
</html>
"""


def _section(check: Check) -> str:
    kind = {True: "passes", False: "fails", None: "measures"}[check.passed]
    word = {True: "Passes. ", False: "Fails. ", None: ""}[check.passed]
    figures = "\n".join(_figure(check.title, each) for each in check.pictures)
    return f"""<section>
<h2>{escape(check.title)}</h2>
<p class="verdict {kind}">{escape(word + check.verdict)}</p>
{figures}
</section>"""


def _figure(title: str, each: Picture) -> str:
    data = base64.b64encode(each.png).decode()
    return (
        f'<figure><img alt="{escape(title)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{escape(each.caption)}</figcaption></figure>"
    )
