"""The paper in miniature as one HTML file: its figures and tables, made from a run and a study,
with what was expected and whether it holds, in words.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
from PIL import Image

from deconvoy.expectations import Expectation, expectations
from deconvoy.html_page import FOOT, HEAD
from deconvoy.markup import element, picture, summary, table, text
from deconvoy.run import Run

WIDEST = 1400
"""Pixels of a figure: more than a page shows."""


@dataclass(frozen=True)
class Part:
    """One figure or table, with what is to be seen in it."""

    source: str
    """Figure or table of the paper: expectations of the same stand below it."""
    title: str
    told: str
    pictures: Mapping[str, Image.Image]
    """By what they show."""
    table: pa.Table | None = None
    shown: pa.Table | None = None
    """Of the table, where all of it would be too long to read."""


def pages(run: Run, study: Run, parts: Sequence[Part]) -> Iterator[str]:
    """The page in parts, head to foot.

    Args:
        run: with all analyses.
        study: the run of a study.
    """
    found = list(expectations(run, study.study()))
    yield HEAD.substitute(name="The paper in miniature")
    yield element("h1", "The paper in miniature")
    yield element("p", text(_HEAD.format(run=summary(run), networks=len(study.study().networks))))
    yield element("div", _verdicts(found), class_="wide")
    for part in parts:
        yield _section(part, [one for one in found if one.source == part.source])
    yield FOOT


_HEAD = (
    "Figures and tables of Zeiler & Fergus, Visualizing and Understanding Convolutional Networks "
    "(ECCV 2014, arXiv:1311.2901), made anew of a small network and drawn images: {run}; "
    "{networks} architectures trained alike. What the paper finds of a large network and "
    "photographs need not hold of these: below stands what was measured. What differs by "
    "less than twice its standard error, or what something simpler explains as well, cannot be "
    "told."
)


def _verdicts(found: Sequence[Expectation]) -> str:
    rows = [(one.source, one.claim, one.verdict) for one in found]
    return table(("from", "what the paper leads to expect", "measured here"), rows)


def _section(part: Part, found: Sequence[Expectation]) -> str:
    body = element("h2", text(f"{part.source}: {part.title}")) + element("p", text(part.told))
    for one in found:
        verdict = element("b", text(f"{one.claim} This {one.verdict}."))
        body += element("p", f"{verdict} {text(one.told)}")
    for described, image in part.pictures.items():
        shown = picture(_fitting(image), f"{part.source}: {described}")
        body += element("figure", shown + element("figcaption", text(described)))
    told = part.table if part.shown is None else part.shown
    if told is not None:
        rows = [tuple(row.values()) for row in told.to_pylist()]
        body += element("div", table(told.column_names, rows), class_="wide")
    return element("section", body)


def _fitting(image: Image.Image) -> Image.Image:
    if image.width <= WIDEST:
        return image
    height = round(image.height * WIDEST / image.width)
    return image.resize((WIDEST, height), Image.Resampling.LANCZOS)
