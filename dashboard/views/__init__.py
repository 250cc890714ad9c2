"""What the dashboard shows: one module a view, named as its address is."""

from collections.abc import Callable

from dashboard.views import (
    analysis,
    compare,
    image,
    images,
    job,
    jobs,
    layer,
    new,
    run,
    runs,
    search,
    unit,
    upload,
)

VIEWS: dict[str, tuple[str, Callable[[], None]]] = {
    "": ("Runs", runs.show),
    "run": ("Run", run.show),
    "layer": ("Layer", layer.show),
    "unit": ("Unit", unit.show),
    "images": ("Images", images.show),
    "image": ("Image", image.show),
    "upload": ("Your image", upload.show),
    "analysis": ("Analyses", analysis.show),
    "compare": ("Compare", compare.show),
    "search": ("Search", search.show),
    "jobs": ("Jobs", jobs.show),
    "job": ("Job", job.show),
    "new": ("New job", new.show),
}
"""Address → title and what shows it; the empty address is where a browser begins."""
