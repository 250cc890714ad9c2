"""An image of one's own: a job looks at it as a run did, and occludes it."""

import io
import math
from typing import Any

import streamlit as st
from PIL import Image

from dashboard import going, library, pieces
from dashboard.addresses import view
from dashboard.library import Json
from dashboard.pieces import element, heading, text
from dashboard.views import asked
from deconvoy.errors import DeconvoyError

KINDS = ["jpg", "jpeg", "png", "webp", "bmp", "gif"]

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
MOST_PIXELS = 20_000_000
"""Of what is decoded here, only to be shown."""

SIDE = 320

TOLD = """Drop a photograph: a job slides a grey square over it, as in Fig. 7 of the paper, and
finds the units of every layer that it excites most, with the model of this run."""


def show() -> None:
    run = asked.run()
    name = run["name"] or run["id"]
    st.set_page_config(page_title=f"Your image · {name} · Deconvoy")
    back = pieces.way(
        ("/", "Runs"),
        (view("run", run=run["id"]), name),
        (view("images", run=run["id"]), "Images"),
    )
    pieces.put(heading("An image of your own", text(" ".join(TOLD.split())), back))
    file = st.file_uploader("Image", type=KINDS, label_visibility="collapsed")
    projected = st.checkbox(
        "Project every feature map to pixels, too",
        value=True,
        help="Of a large network this takes many minutes without a GPU.",
    )
    if file is None:
        return
    content = file.getvalue()
    preview = _preview(content)
    if preview is not None:
        st.image(preview)
    pieces.put(element("p", text(file.name), class_="told"))
    if not st.button("Look at it", type="primary"):
        return
    try:
        with st.spinner("Handing it in …"):
            uri = library.client().upload(content)
            job = library.client().submit(spec_of(run, uri, file.name, projected))
    except DeconvoyError as error:
        pieces.put(element("p", text(error), class_="refusal", role="alert"))
        return
    going.to(view("job", id=job.id))


def _preview(content: bytes) -> Image.Image | None:
    """Small; None of what is no image or too large: the service says so once it is handed in."""
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if math.prod(image.size) > MOST_PIXELS:
                return None
            image.thumbnail((SIDE, SIDE))
            return image.convert("RGB")
    except Exception:  # decoders raise OSError, ValueError, SyntaxError, struct.error, …
        return None


def spec_of(run: Json, uri: str, name: str, projected: bool) -> dict[str, Any]:
    """The job: the model and transform of the run, one image."""
    given = run["spec"]
    analyses: list[dict[str, Any]] = [
        {"kind": "top", "k": 1},
        {"kind": "occlusion", "images": {"ids": [0]}},
    ]
    if projected:
        analyses.append({"kind": "projection", "method": library.method_of(run)})
    return {
        "name": name,
        "seed": given["seed"],
        "model": given["model"],
        "data": {"uri": uri, "transform": run["provenance"]["transform"]},
        "layers": given["layers"],
        "analyses": analyses,
        "storage": given["storage"],
    }
