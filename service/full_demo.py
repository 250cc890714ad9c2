"""The figures, tables and report of a full demo: everything the paper shows, of the demo's runs."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
from PIL import Image

import deconvoy
from deconvoy import (
    figure4,
    figure5,
    figures,
    miniature,
    probe_figure,
    queries,
    study_figure,
)
from deconvoy.evolution import evolved_layers
from deconvoy.miniature import Part
from service import drawing

SHOWN_LAYERS = ("relu1", "relu2", "relu3", "relu4", "relu5")
"""Of Fig. 2 and Fig. 4."""


def write(folder: Any) -> None:
    """Draw and write everything into a demo's folder (``workers.demo.Folder``)."""
    run, study = deconvoy.open(folder.run), deconvoy.open(folder.study)
    parts = list(_parts(run, study))
    folder.tables.mkdir(exist_ok=True)
    for part in parts:
        for described, image in part.pictures.items():
            figures.save(image, folder.figures / f"{_slug(part.source, described)}.png")
        if part.table is not None:
            pacsv.write_csv(_plain(part.table), folder.tables / f"{_slug(part.source)}.csv")
    folder.report.write_text("".join(miniature.pages(run, study, parts)), encoding="utf-8")


def told(folder: Any) -> Iterator[str]:
    """What to look at, line by line."""
    for path in sorted(folder.figures.iterdir()) + sorted(folder.tables.iterdir()):
        yield f"  {path}"
    yield ""
    yield f"All of it with the numbers in words: {folder.report}"
    yield ""
    yield "To walk through it in a browser:"
    yield f"  deconvoy up {folder.run} {folder.study}"


def _parts(run: deconvoy.Run, study: deconvoy.Run) -> Iterator[Part]:
    yield Part(
        "Fig. 2",
        "what feature maps see",
        "For each unit its nine strongest hits, one an image: the deconvnet's projections left, "
        "the image patches that caused them right.",
        {layer: drawing.draw_layer(run, layer, None) for layer in SHOWN_LAYERS},
    )
    evolved = [layer for layer in SHOWN_LAYERS if layer in evolved_layers(run)]
    yield Part(
        "Fig. 4",
        "features over the epochs of training",
        "For each unit its strongest activation at every checkpoint, projected and as patch; jumps "
        "are changes of the strongest image.",
        {layer: _evolution(run, layer) for layer in evolved},
        queries.settled(run),
    )
    yield Part(
        "Fig. 5",
        "images shifted, scaled and turned",
        "How far the features of each layer move, relative to their norm, and the probability of "
        "the class.",
        {"all layers": figure5.figure5(run.invariance())},
    )
    yield Part(
        "Fig. 7",
        "a grey square slid over images",
        "The image, the activity of its strongest map, that map's projections, the probability of "
        "the class and the most probable class by place of the square.",
        {"the three images whose class it hides best": drawing.draw_images(run, None)},
        queries.localisation(run),
    )
    yield Part(
        "Table 1",
        "parts covered in several images",
        "Δ, by layer and part, beside that of boxes of the same sizes at random; p is how probable "
        "a Δ as low would be by chance.",
        {},
        queries.correspondence(run),
    )
    yield Part(
        "Table 3",
        "architectures trained alike",
        "Errors at the end by network, and a look at their first layers (section 4.1): dead "
        "filters, filters at the bound of their root mean square, and their frequencies.",
        {"errors, curves and first filters": study_figure.study_figure(study.study())},
        queries.study(study),
    )
    yield Part(
        "Tables 4–7",
        "the network frozen, other classifiers on top",
        "Accuracy of linear classifiers by the features of each layer, trained and random weights. "
        "The paper has other data for this; here they are drawings of the same classes that the "
        "network has not seen.",
        {"by layer, and by images learned from": probe_figure.probe_figure(run.probe())},
        queries.probe(run),
        _of_most(queries.probe(run)),
    )


def _of_most(found: pa.Table) -> pa.Table:
    """Rows of the most training images."""
    return found.filter(pc.equal(found["train"], pc.max(found["train"])))


def _evolution(run: deconvoy.Run, layer: str) -> Image.Image:
    look = run.look(layer)
    return figure4.figure4(run.evolution(layer), None, zoom=look["zoom"], sigma=look["sigma"])


def _slug(*parts: str) -> str:
    words = "-".join(parts).lower().replace("–", "-to-").replace(". ", "-").replace(" ", "-")
    return "".join(letter for letter in words if letter.isalnum() or letter in "-_.")


def _plain(table: pa.Table) -> pa.Table:
    """Without columns that a CSV has no place for."""
    kept = [field.name for field in table.schema if not pa.types.is_nested(field.type)]
    return table.select(kept)
