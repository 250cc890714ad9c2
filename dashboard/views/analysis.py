"""A run's further analyses, one at a time: those it has, and how to ask for the others."""

import streamlit as st

from dashboard import library, pieces
from dashboard.addresses import view
from dashboard.library import Json
from dashboard.pieces import element, heading, pills, text
from dashboard.views import asked, correspondence, evolution, invariance, probe
from deconvoy.errors import RequestError

KINDS = {
    "evolution": ("Evolution", evolution.show, evolution.TOLD),
    "invariance": ("Invariance", invariance.show, invariance.TOLD),
    "correspondence": ("Correspondence", correspondence.show, correspondence.TOLD),
    "probe": ("Probe", probe.show, probe.TOLD),
}
"""By kind: its title, what shows it, and what it is, for people."""

EXAMPLES = {
    "correspondence": """data:
  uri: images
  parts: parts.csv   # path,part,x0,y0,x1,y1
analyses:
  - kind: top
  - kind: correspondence""",
    "evolution": """model:
  weights: end.safetensors
  checkpoints: [first.safetensors, …]
analyses:
  - kind: top
  - kind: evolution""",
    "probe": """analyses:
  - kind: top
  - kind: probe
    data: {uri: other/labelled/images}""",
}
"""How a spec asks for one that needs more than its name."""

STUDY = """kind: study
base: deconvoy/zfnet_small
data: {uri: labelled/images}
edits:
  - {remove: [3, 4]}
  - {widths: {6: 128, 7: 128}}"""


def show() -> None:
    run, state = asked.run(), asked.state()
    name = run["name"] or run["id"]
    kind = state.get("kind") or _first(run)
    if kind == "study":
        _how_to_study(run, name)
        return
    if kind not in KINDS:
        raise RequestError(
            f"The address says kind={kind!r}, but analyses with a view are {', '.join(KINDS)}: "
            "mend it."
        )
    title, shown, told = KINDS[kind]
    st.set_page_config(page_title=f"{title} · {name} · Deconvoy")
    back = pieces.way(("/", "Runs"), (view("run", run=run["id"]), name))
    choice = pills(
        "Analysis",
        [
            (other, view("analysis", run=run["id"], kind=each), each == kind)
            for each, (other, _, _) in KINDS.items()
        ]
        + [("Study", view("analysis", run=run["id"], kind="study"), False)],
    )
    pieces.put(heading(title, text(told), back), pieces.bar(choice))
    if kind in _asked(run):
        shown(run)
    else:
        _absent(run, kind)


def _how_to_study(run: Json, name: str) -> None:
    """No run of a job has one: a study trains networks of its own."""
    st.set_page_config(page_title="Study · Deconvoy")
    told = "Several architectures trained alike: what removing and resizing layers costs (Table 3)"
    back = pieces.way(("/", "Runs"), (view("run", run=run["id"]), name))
    ways = [
        (title, view("analysis", run=run["id"], kind=kind), False)
        for kind, (title, _, _) in KINDS.items()
    ]
    here = ("Study", view("analysis", run=run["id"], kind="study"), True)
    pieces.put(heading("Study", told, back), pieces.bar(pills("Analysis", [*ways, here])))
    how = "A study is a run of its own. Write its spec, and hand it in by "
    pieces.put(element("p", f"{how}<code>deconvoy submit study.yaml</code>:", class_="empty"))
    st.code(STUDY, language="yaml")


def _first(run: Json) -> str:
    """Of those the run has; else of all."""
    return next((kind for kind in KINDS if kind in _asked(run)), next(iter(KINDS)))


def _asked(run: Json) -> list[str]:
    return [each["kind"] for each in run["spec"]["analyses"]]


def _absent(run: Json, kind: str) -> None:
    told = (
        f"This run has no {text(kind)}. Add it to the analyses of its spec, and run that as a new "
        "job:"
    )
    pieces.put(element("p", told, class_="empty"))
    plain = f"analyses:\n  - kind: top\n  - kind: {kind}"
    st.code(EXAMPLES.get(kind, plain), language="yaml")
    if library.takes_jobs():
        form = view("new", run=run["id"], add=kind)
        pieces.put(pieces.link(form, "Fill in the form with it", class_="pill"))
