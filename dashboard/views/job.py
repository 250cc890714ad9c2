"""One job: how far it is, what its driver says, and what can be done with it."""

from urllib.parse import quote

import streamlit as st
import yaml

from dashboard import library, pieces
from dashboard.addresses import view
from dashboard.pieces import card, element, facts, heading, link, text
from dashboard.views import asked
from deconvoy.client_job import ClientJob
from deconvoy.errors import DeconvoyError

LOOK_SECONDS = 1.0
LOG_LINES = 200
"""The last ones; all are behind a link."""

RESUMABLE = ("failed", "stopped", "interrupted")
UPLOADS = "/.uploads/"
"""Below this the service keeps single images that were handed in."""

TOLD = "job.told"
"""Where the session keeps what a button came to."""


def show() -> None:
    id_ = asked.required("id")
    job = library.client().job(id_)
    st.set_page_config(page_title=f"{job.name} · Deconvoy")
    pieces.put(heading(job.name, text(job.id), pieces.way((view("jobs"), "Jobs"))))
    told = st.session_state.pop(TOLD, None)
    if told is not None:
        pieces.put(element("p", text(told), class_="refusal", role="alert"))
    every = None if job.has_ended else LOOK_SECONDS
    st.fragment(pieces.telling(_moving), run_every=every)(id_, job.state)
    with st.expander("Spec"):
        st.code(yaml.safe_dump(job.spec, sort_keys=False, allow_unicode=True), language="yaml")
        if job.spec.get("kind") != "study":  # the form is for jobs
            pieces.put(link(view("new", job=id_), "A new job like this", class_="pill"))


def _moving(id_: str, shown: str) -> None:
    job = library.client().job(id_)
    if job.state != shown:  # buttons and what is below change with it
        st.rerun()
    pieces.put(_how_far(job))
    _buttons(job)
    pieces.put(element("div", card("This job", facts(_rows(job))), class_="cards"))
    lines = job.logs()
    every = element("a", "all of it", href=f"/v1/jobs/{quote(id_, safe='')}/logs", target="_blank")
    cut = f" the last {LOG_LINES} lines, {every}" if len(lines) > LOG_LINES else ""
    pieces.put(element("h2", "Log" + element("span", cut, class_="told"), class_="part"))
    st.code("\n".join(lines[-LOG_LINES:]) or "Nothing yet.", language=None, height=320)


def _how_far(job: ClientJob) -> str:
    state = element("span", text(job.state), class_=f"state {job.state}")
    told = element("p", state + " " + text(line_of(job)), class_="how-far", role="status")
    error = element("p", text(job.error), class_="refusal", role="alert") if job.error else ""
    at = job.progress
    share = 1.0 if job.state == "done" else at.done / at.total if at and at.total else 0.0
    width = f"width:{100 * share:.1f}%"
    # No <progress>: Streamlit keeps none of its attributes.
    line = element("div", element("i", "", style=width), class_="progress",
                   role="img", **{"aria-label": f"{share:.0%} of this stage"})  # fmt: skip
    opened = ""
    if job.state not in ("queued", "starting"):
        opened = link(view("run", run=job.id), "Open its run", class_="pill chosen")
    if job.state == "done" and UPLOADS in str(job.spec["data"]["uri"]):
        opened = link(view("image", run=job.id, image=0), "See the image", class_="pill chosen")
    return told + line + error + element("p", opened)


def line_of(job: ClientJob) -> str:
    """How far it is, in words."""
    at = job.progress
    if at is None or job.has_ended:
        return ""
    told = [f"{at.stage}: {at.done:,} of {at.total:,}"]
    if at.rate:
        told.append(f"{at.rate:,.3g} a second")
    if at.seconds_left is not None:
        told.append(f"{pieces.duration(at.seconds_left)} left")
    return " · ".join(told)


def _rows(job: ClientJob) -> list[tuple[str, str]]:
    took = (job.ended - job.started).total_seconds() if job.ended and job.started else None
    return [
        ("submitted by", job.submitter),
        ("submitted", f"{job.created:%Y-%m-%d %H:%M:%S} UTC"),
        ("began", f"{job.started:%Y-%m-%d %H:%M:%S} UTC" if job.started else ""),
        ("ended", f"{job.ended:%Y-%m-%d %H:%M:%S} UTC" if job.ended else ""),
        ("took", "" if took is None else pieces.duration(took)),
        ("attempts", str(job.attempts)),
    ]


def _buttons(job: ClientJob) -> None:
    if not job.has_ended:
        stopping = job.state == "stopping"
        st.button("Cancel", on_click=_cancel, args=(job.id,), disabled=stopping,
                  help="What it has found stays readable, and it can be resumed.")  # fmt: skip
    elif job.state in RESUMABLE:
        st.button("Resume", on_click=_resume, args=(job.id,), type="primary")


def _cancel(id_: str) -> None:
    try:
        library.client().job(id_).cancel()
    except DeconvoyError as error:
        st.session_state[TOLD] = str(error)


def _resume(id_: str) -> None:
    try:
        library.client().job(id_).resume()
    except DeconvoyError as error:
        st.session_state[TOLD] = str(error)
