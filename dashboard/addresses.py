"""Addresses of views, which say all that a view shows, and of pictures, which the API draws."""

from collections.abc import Mapping
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

Value = str | int | float | bool | None


def view(name: str, /, **state: Value) -> str:
    """Of a view: ``/unit?run=squeeze&layer=relu2&unit=7``; what is None is left out."""
    given = _given(state)
    return f"/{name}" + (f"?{given}" if given else "")


def taken_apart(address: str) -> tuple[str, dict[str, str]]:
    """The view's name and its state."""
    parts = urlsplit(address)
    return parts.path.strip("/"), dict(parse_qsl(parts.query, keep_blank_values=True))


def changed(name: str, state: Mapping[str, str], /, **changes: Value) -> str:
    """The same view with other state; what is None goes."""
    return view(name, **{**state, **changes})


def unit_picture(run: str, commit: str, layer: str, unit: int, suffix: str, **look: Value) -> str:
    """One unit's hits: ``show``, ``tile``, ``zoom``, ``smooth``, ``grey``."""
    return _picture(f"layers/{_part(layer)}/units/{unit}.{suffix}", run, commit, **look)


def evolution_picture(
    run: str, commit: str, layer: str, unit: int, suffix: str, **look: Value
) -> str:
    """What one unit saw at every checkpoint; ``look`` as of ``unit_picture``."""
    return _picture(f"evolution/{_part(layer)}/units/{unit}.{suffix}", run, commit, **look)


def image_picture(
    run: str, commit: str, image: int, side: int, preprocessed: bool | None = None
) -> str:
    """An image, its longer side of so many pixels at most; as the model sees it, if asked for."""
    return _picture(f"images/{image}.jpg", run, commit, side=side, preprocessed=preprocessed)


def occlusion_picture(run: str, commit: str, image: int, layer: str | None = None) -> str:
    """Fig. 7 of an image."""
    return _picture(f"occlusion/{image}.png", run, commit, layer=layer)


def filters_picture(run: str, commit: str, network: int, tile: int) -> str:
    """The first filters of a network of a study."""
    return _picture(f"study/{network}.png", run, commit, tile=tile)


def unit_data(run: str, layer: str, unit: int) -> str:
    """The same as JSON."""
    return f"/v1/runs/{_part(run)}/layers/{_part(layer)}/units/{unit}"


def _picture(path: str, run: str, commit: str, **look: Value) -> str:
    return f"/v1/runs/{_part(run)}/{path}?{_given({**look, 'v': commit})}"


def _given(state: Mapping[str, Value]) -> str:
    plain = {k: str(v).lower() if isinstance(v, bool) else v for k, v in state.items()}
    return urlencode({k: v for k, v in plain.items() if v is not None})


def _part(text: str) -> str:
    """Of a path; dots alone would lead out of it."""
    escaped = quote(text, safe="")
    return escaped if escaped.strip(".") else escaped.replace(".", "%2E")
