"""What an address asks for."""

import re

import streamlit as st

from dashboard import library
from dashboard.library import Json
from deconvoy.errors import RequestError, RunNotFound


def state() -> dict[str, str]:
    """All of it."""
    return st.query_params.to_dict()


def run() -> Json:
    """The run that the address names, of a job.

    Raises:
        RunNotFound: there is none, or it is a study, which has nothing that most views show.
        RequestError: the address names none.
    """
    found = any_run()
    if found["kind"] == "study":
        name = found["name"] or found["id"]
        raise RunNotFound(
            f"{name} is a study of architectures, which has no layers, units or images to show: "
            "see This run."
        )
    return found


def any_run() -> Json:
    """The run that the address names, of whatever kind.  Raises RunNotFound, RequestError."""
    return library.summary(required("run"))


def layer(run: Json) -> Json:
    """The layer of a run that the address names.  Raises RunNotFound, RequestError."""
    name = required("layer")
    for row in library.layers(run):
        if row["layer"] == name:
            return row
    library.ask(library.run_path(run["id"], "layers", name))  # refuses, and names the nearest
    raise RunNotFound(f"Layer {name!r} has no results yet: the run is {run['status']}.")


def number(name: str, least: int = 0) -> int | None:
    """A whole number.

    Raises:
        RequestError: it is none.
    """
    text = st.query_params.get(name)
    if text is None:
        return None
    if not (text.isdecimal() and len(text) < 19) or int(text) < least:
        raise RequestError(
            f"The address says {name}={text!r}; {name} is a whole number from {least}: mend it."
        )
    return int(text)


def decimal(name: str, usual: float) -> float:
    """A number of 0 or more.

    Raises:
        RequestError: it is none.
    """
    text = st.query_params.get(name)
    if text is None:
        return usual
    if not re.fullmatch(r"\d{1,9}(\.\d{1,9})?", text):
        raise RequestError(
            f"The address says {name}={text!r}; {name} is a number from 0, as in 1.5: mend it."
        )
    return float(text)


def required(name: str) -> str:
    """A part without which there is nothing to show.  Raises RequestError: it is missing."""
    text = st.query_params.get(name)
    if not text:
        raise RequestError(
            f"The address of this view names no {name}: begin at Runs, or add {name}=… to it."
        )
    return text
