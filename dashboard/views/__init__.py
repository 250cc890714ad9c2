"""What the dashboard shows: one module a view, named as its address is."""

from collections.abc import Callable

from dashboard.views import layer, run, runs, unit

VIEWS: dict[str, tuple[str, Callable[[], None]]] = {
    "": ("Runs", runs.show),
    "run": ("Run", run.show),
    "layer": ("Layer", layer.show),
    "unit": ("Unit", unit.show),
}
"""Address → title and what shows it; the empty address is where a browser begins."""
