"""A job is asked for: a form and its YAML, the plan of it, and the button that submits it."""

from collections.abc import Callable
from typing import Any

import streamlit as st

from dashboard import draft, going, library, pieces
from dashboard.addresses import view
from dashboard.pieces import card, element, facts, heading, number, text
from dashboard.views import asked
from deconvoy import progress
from deconvoy.errors import DeconvoyError
from deconvoy.methods import METHODS
from deconvoy.spec import JobSpec

PLAN = "new.plan"
"""Where the session keeps the plan, and of which text it is."""

BEGUN = "new.begun"


def show() -> None:
    st.set_page_config(page_title="New job · Deconvoy")
    if not library.takes_jobs():
        told = (
            "This service only shows runs and takes no jobs: its operator started it with "
            "<code>--ray none</code>."
        )
        pieces.put(heading("New job"), element("p", told, class_="empty"))
        return
    _begin()
    pieces.put(heading("New job", "What is asked of the service: a form, and the same as YAML"))
    form, right = st.columns([3, 2], gap="large")
    with form:
        _model()
        _data()
        _analyses()
        _compute()
    with right:
        st.text_area("The job spec, as YAML", key=draft.TEXT, height=420, on_change=draft.read_text)
        _act()


def _begin() -> None:
    """With the spec of a run or job that the address names, once."""
    state = asked.state()
    wanted = (state.get("run"), state.get("job"), state.get("add"))
    if wanted == st.session_state.get(BEGUN) or not any(wanted):
        draft.begin()
        return
    st.session_state[BEGUN] = wanted
    run, job, add = wanted
    if job is not None:
        draft.begin(_given(library.client().job(job).spec))
    elif run is not None:
        draft.begin(_given(library.summary(run)["spec"]))
    if add in draft.KINDS and draft.analysis(add) is None:
        draft.put_analysis(add, {})


def _given(spec: dict[str, Any]) -> dict[str, Any]:
    """Without what is as it would be anyway: a form that says everything says nothing."""
    given: dict[str, Any] = JobSpec.parse(spec).model_dump(mode="json", exclude_defaults=True)
    return given


# -- the form --------------------------------------------------------------------------------------


def _field(place: draft.Place, read: Callable[[Any], Any] = lambda value: value or None) -> Any:
    """Key and what to do when the widget of a field is changed.

    Args:
        read: the widget's value → the field's; None takes it out.
    """
    key = "new." + ".".join(place)

    def changed() -> None:
        draft.put(place, read(st.session_state[key]))

    return {"key": key, "on_change": changed}


def _text(label: str, *place: str, **more: Any) -> None:
    bound = _field(place, lambda value: value.strip() or None)
    given = draft.get(*place)
    st.session_state[bound["key"]] = "" if given is None else str(given)
    st.text_input(label, **bound, **more)


def _count(label: str, *place: str, least: int = 1, **more: Any) -> None:
    bound = _field(place, lambda value: value)
    given = draft.get(*place)
    st.session_state[bound["key"]] = given if isinstance(given, int) else None
    st.number_input(label, min_value=least, step=1, **bound, **more)


def _model() -> None:
    pieces.put(element("h2", "Model", class_="part"))
    names = _models()
    given = draft.get("model", "name")
    if given is not None and given not in names:
        names = [str(given), *names]
    bound = _field(("model", "name"))
    st.session_state[bound["key"]] = given
    st.selectbox(
        "Network",
        names,
        accept_new_options=True,
        help="torchvision and built-in models; or path/to/file.py:factory, where the "
        "operator lists it.",
        **bound,
    )
    _text(
        "Weights",
        "model",
        "weights",
        placeholder="/path/to/weights.safetensors, or a name such as IMAGENET1K_V1",
        help="A .safetensors, .pt or .pth file the service can read; empty: random weights.",
    )


@st.cache_data(ttl=library.KEPT_SECONDS, show_spinner=False)
def _models() -> list[str]:
    found = library.ask("models")["models"]
    return [model["name"] for model in found]


def _data() -> None:
    pieces.put(element("h2", "Images", class_="part"))
    _text(
        "Where they are",
        "data",
        "uri",
        placeholder="/path/to/images, or shapes?size=1000",
        help="An image folder, Parquet, WebDataset .tar or .csv; local, s3:// or https://.",
    )
    left, right = st.columns(2)
    with left:
        _text(
            "Labels",
            "data",
            "labels",
            placeholder="/path/to/labels.csv",
            help="CSV or Parquet with the columns path and label; empty: class folders.",
        )
    with right:
        _count(
            "At most",
            "data",
            "limit",
            placeholder="all images",
            help="So many images, evenly spaced over the sorted list.",
        )


def _analyses() -> None:
    pieces.put(element("h2", "What to find out", class_="part"))
    layers = draft.get("layers")
    bound = _field(("layers",), _names)
    st.session_state[bound["key"]] = ", ".join(map(str, layers)) if isinstance(layers, list) else ""
    st.text_input(
        "Layers", placeholder="all", help="Names and globs, with commas between.", **bound
    )
    top = draft.analysis("top") or {}
    _of_analysis("Strongest images of each unit", "top", "k", top, top.get("k", 9))
    projection = draft.analysis("projection")
    _switch("Project them to pixels (Fig. 2)", "projection", projection)
    if projection is not None:
        _method(projection)
    occlusion = draft.analysis("occlusion")
    _switch("Slide a grey square over images (Fig. 7)", "occlusion", occlusion)
    if occlusion is not None:
        images = occlusion.get("images", {"sample": 32})
        sample = images.get("sample") if isinstance(images, dict) else None
        if sample is not None:
            _of_analysis(
                "Over so many images",
                "occlusion",
                "images",
                occlusion,
                sample,
                lambda value: {"sample": value},
            )

    invariance = draft.analysis("invariance")
    _switch("Shift, scale and turn images (Fig. 5)", "invariance", invariance)


def _names(value: str) -> list[str] | None:
    names = [name.strip() for name in value.split(",") if name.strip()]
    return None if names in ([], ["all"]) else names


def _switch(label: str, kind: str, given: dict[str, Any] | None) -> None:
    key = f"new.with.{kind}"
    st.session_state[key] = given is not None

    def changed() -> None:
        draft.put_analysis(kind, {} if st.session_state[key] else None)

    st.checkbox(label, key=key, on_change=changed)


def _of_analysis(
    label: str,
    kind: str,
    name: str,
    given: dict[str, Any],
    value: int,
    read: Callable[[int], Any] = lambda value: value,
) -> None:
    key = f"new.{kind}.{name}"
    st.session_state[key] = value if isinstance(value, int) else 1

    def changed() -> None:
        inner = {each: at for each, at in given.items() if each != "kind"}
        draft.put_analysis(kind, {**inner, name: read(st.session_state[key])})

    st.number_input(label, min_value=1, step=1, key=key, on_change=changed)


def _method(given: dict[str, Any]) -> None:
    usual, *_ = names = tuple(METHODS)
    key = "new.projection.method"
    known = given.get("method")
    st.session_state[key] = known if known in names else usual

    def changed() -> None:
        inner = {each: at for each, at in given.items() if each not in ("kind", "method")}
        chosen = st.session_state[key]
        draft.put_analysis("projection", inner | ({} if chosen == usual else {"method": chosen}))

    st.selectbox(
        "Method of projection",
        names,
        format_func=lambda name: f"{METHODS[name].name} ({METHODS[name].source})",
        help="Where a rectifier lets the signal pass on its way down to the pixels.",
        key=key,
        on_change=changed,
    )


PRECISIONS = ("float32", "bfloat16")


def _compute() -> None:
    with st.expander("Name and compute"):
        _text("Name of the job", "name", placeholder="as the model")
        left, right = st.columns(2)
        with left:
            _count("Workers", "compute", "workers", placeholder="one per GPU, else per two cores")
            _count("Images a batch", "compute", "batch_size", placeholder="as memory allows")
        with right:
            _count("Seed", "seed", least=0, placeholder="0")
            bound = _field(
                ("compute", "precision"), lambda value: None if value == PRECISIONS[0] else value
            )
            given = draft.get("compute", "precision")
            st.session_state[bound["key"]] = given if given in PRECISIONS else PRECISIONS[0]
            st.selectbox("Precision of the scan", PRECISIONS, **bound)


# -- what becomes of it ----------------------------------------------------------------------------


def _act() -> None:
    plan, submit = st.columns(2)
    planned = plan.button("Plan", width="stretch", help="What it would do, take and need.")
    submitted = submit.button("Submit", type="primary", width="stretch")
    known = st.session_state.get(PLAN)
    seen = known is not None and known[0] == st.session_state[draft.TEXT]
    try:
        if planned or (submitted and not seen):
            with st.spinner("A few images are computed …"):
                made = library.client().plan(draft.spec())
            st.session_state[PLAN] = (st.session_state[draft.TEXT], made)
            if submitted:
                told = "This is what it would take: press Submit again, and it begins."
                pieces.put(element("p", told, class_="told", role="status"))
        elif submitted:
            job = library.client().submit(draft.spec())
            going.to(view("job", id=job.id))
    except DeconvoyError as error:
        pieces.put(element("p", text(error), class_="refusal", role="alert"))
        return
    known = st.session_state.get(PLAN)
    if known is not None and known[0] == st.session_state[draft.TEXT]:
        _planned(known[1])


def _planned(plan: dict[str, Any]) -> None:
    seconds, size = plan["seconds"], plan["bytes"]
    stages = ", ".join(
        f"{name} {pieces.duration(value)}" for name, value in seconds.items() if name != "total"
    )
    rows = [
        ("weights", plan["weights"]),
        ("images", number(plan["images"])),
        ("labels", plan["labels_from"]),
        ("layers", number(len(plan["layers"]))),
        ("units", number(sum(layer["units"] for layer in plan["layers"]))),
        ("projections", f"{number(plan['projections'])}, {METHODS[plan['method']].name}"),
        ("positions of a square", number(plan["squares"]) if plan["squares"] else ""),
        *((progress.WORDS[kind], number(count)) for kind, count in plan["further"].items()),
        ("workers × threads", f"{plan['workers']} × {plan['threads']}"),
        ("time, about", f"{pieces.duration(seconds['total'])} ({stages})"),
        ("storage, about", f"{size['total'] / 2**20:,.0f} MiB"),
        ("free", "" if plan["free_bytes"] is None else f"{plan['free_bytes'] / 2**30:,.0f} GiB"),
    ]
    pieces.put(card("Plan", facts(rows)))
    with st.expander(f"Its {len(plan['layers'])} layers"):
        pieces.put(_layers(plan["layers"]))


def _layers(layers: list[dict[str, Any]]) -> str:
    names = ("Layer", "Units", "Maps", "Projected")
    head = "".join(element("th", name) for name in names)
    body = ""
    for layer in layers:
        cells = (
            text(layer["name"]),
            number(layer["units"]),
            f"{layer['height']} × {layer['width']}",
            "yes" if layer["projectable"] else "no",
        )
        body += element("tr", "".join(element("td", cell) for cell in cells))
    table = f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
    return element("div", element("table", table, class_="rows"), class_="scroll")
