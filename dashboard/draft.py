"""A job spec that somebody is writing: the same as a form, field by field, and as YAML.

The session holds what is given, as plain fields; the form and the text are made from it anew at
every run of the script, and write into it when they are changed.
"""

import copy
from typing import Any

import streamlit as st
import yaml

from deconvoy.errors import RequestError
from deconvoy.spec import JobSpec
from deconvoy.spec_file import plain_fields

FIELDS = "draft.fields"
TEXT = "draft.text"
WRONG = "draft.wrong"
"""What is wrong with the text; the fields are then those of the last text that was right."""

EMPTY: dict[str, Any] = {
    "model": {"name": "torchvision/squeezenet1_1", "weights": None},
    "data": {"uri": ""},
    "analyses": [{"kind": "top"}, {"kind": "projection"}],
}

Place = tuple[str, ...]

KINDS = {
    kind: number
    for number, kind in enumerate(
        ("top", "projection", "occlusion", "invariance", "correspondence", "probe", "evolution")
    )
}
"""Kinds of analyses in the order in which they are written."""


def begin(fields: dict[str, Any] | None = None) -> None:
    """Begin with these, or where there is no draft yet with an empty one."""
    if fields is not None or FIELDS not in st.session_state:
        _set(copy.deepcopy(EMPTY if fields is None else fields))


def fields() -> dict[str, Any]:
    """What is given."""
    found: dict[str, Any] = st.session_state[FIELDS]
    return found


def spec() -> JobSpec:
    """What is given, checked.

    Raises:
        RequestError: it is no job spec; says every field that is wrong.
    """
    wrong = st.session_state[WRONG]
    if wrong:
        raise RequestError(wrong)
    return JobSpec.parse(copy.deepcopy(fields()))


def get(*place: str) -> Any:
    """What is given of a field; None where nothing is."""
    at: Any = fields()
    for name in place:
        if not isinstance(at, dict) or name not in at:
            return None
        at = at[name]
    return at


def put(place: Place, value: Any) -> None:
    """Give a field; None takes it out."""
    *outer, last = place
    at = fields()
    for name in outer:
        inner = at.get(name)
        if not isinstance(inner, dict):
            inner = at[name] = {}
        at = inner
    if value is None:
        at.pop(last, None)
    else:
        at[last] = value
    _set(fields())


def analysis(kind: str) -> dict[str, Any] | None:
    """What is given of an analysis; None where it is not asked for."""
    given = fields().get("analyses")
    for each in given if isinstance(given, list) else []:
        if isinstance(each, dict) and each.get("kind") == kind:
            return each
    return None


def put_analysis(kind: str, given: dict[str, Any] | None) -> None:
    """Ask for an analysis; None: do not."""
    known = fields().get("analyses")
    others = [each for each in known if _kind(each) != kind] if isinstance(known, list) else []
    mine = [] if given is None else [{"kind": kind, **given}]
    # What the text has besides stays as it is, and last: the spec says what is wrong with it.
    every = sorted(others + mine, key=lambda each: KINDS.get(_kind(each), len(KINDS)))
    put(("analyses",), every)


def _kind(given: Any) -> str:
    """Of an analysis as it is written, which need not be one."""
    return str(given.get("kind", "")) if isinstance(given, dict) else ""


def read_text() -> None:
    """The text was changed: it is what is given now, if it is YAML of a mapping."""
    text = st.session_state[TEXT]
    try:
        given = plain_fields(text)
    except (yaml.YAMLError, ValueError) as error:
        st.session_state[WRONG] = f"The text is no YAML: {' '.join(str(error).split())}"
        return
    if not isinstance(given, dict):
        st.session_state[WRONG] = "The text is no job spec: begin with the lines of an example."
        return
    st.session_state[FIELDS], st.session_state[WRONG] = given, ""


def _set(given: dict[str, Any]) -> None:
    st.session_state[FIELDS], st.session_state[WRONG] = given, ""
    st.session_state[TEXT] = yaml.safe_dump(given, sort_keys=False, allow_unicode=True)
