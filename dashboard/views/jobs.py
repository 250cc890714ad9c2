"""All jobs of the service, the newest first."""

import streamlit as st

from dashboard import library, pieces
from dashboard.addresses import changed, view
from dashboard.pieces import bar, element, heading, link, pills, text
from dashboard.views import asked
from dashboard.views.job import line_of
from deconvoy.client_job import ClientJob

STATES = ("queued", "running", "done", "failed", "stopped", "interrupted")
MOST = 100
LOOK_SECONDS = 2.0

NOTHING = """No job is like that. A job is made under <em>New job</em>, or by
<code>deconvoy submit SPEC</code>."""


def show() -> None:
    st.set_page_config(page_title="Jobs · Deconvoy")
    state = asked.state()
    pieces.put(heading("Jobs", "Work that was asked of this service, the newest first"))
    options = [("All", changed("jobs", state, state=None), "state" not in state)]
    options += [
        (name, changed("jobs", state, state=name), state.get("state") == name) for name in STATES
    ]
    new = link(view("new"), "+ New job", class_="pill") if library.takes_jobs() else ""
    pieces.put(bar(pills("State", options), new))
    _moving(state.get("state"))


@st.fragment(run_every=LOOK_SECONDS)
def _moving(state: str | None) -> None:
    found = list(library.client().jobs(state, MOST))
    if not found:
        pieces.put(element("p", NOTHING, class_="empty"))
        return
    names = ("Job", "State", "How far", "Submitted by", "When")
    kinds = ("", "", "", "wide-only", "wide-only")
    head = "".join(
        element("th", name, class_=kind) for name, kind in zip(names, kinds, strict=True)
    )
    body = "".join(_row(job, kinds) for job in found)
    table = f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
    pieces.put(element("div", element("table", table, class_="rows"), class_="scroll"))
    if len(found) == MOST:
        told = f"The newest {MOST}: <code>deconvoy jobs</code> lists them all."
        pieces.put(element("p", told, class_="told"))


def _row(job: ClientJob, kinds: tuple[str, ...]) -> str:
    cells = (
        link(view("job", id=job.id), text(job.name))
        + element("div", text(job.id), class_="told small"),
        element("span", text(job.state), class_=f"state {job.state}"),
        text(job.error or line_of(job)),
        text(job.submitter),
        f"{job.created:%Y-%m-%d %H:%M} UTC",
    )
    return element(
        "tr",
        "".join(element("td", cell, class_=kind) for cell, kind in zip(cells, kinds, strict=True)),
    )
