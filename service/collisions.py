"""Files of the user that are named like a package of ours, and would be imported in its stead.

Python takes the first ``workers`` on its path.  The working directory comes first for ``python -m``
and in every Ray worker, so a ``workers.py`` there hides ours, and what follows is an import error
that names neither.
"""

import importlib.util
from collections.abc import Iterator
from pathlib import Path

from deconvoy.errors import RequestError

PACKAGES = ("deconvoy", "workers", "service", "dashboard")

HOME = Path(__file__).resolve().parents[1]
"""Where our packages lie side by side."""

REMEDY = "rename it, or start deconvoy from another folder"


def in_folder(folder: Path) -> list[Path]:
    """Modules and packages in a folder that hide ours where the folder comes first."""
    if folder.resolve() == HOME:
        return []
    named = (folder / f"{name}{rest}" for name in PACKAGES for rest in (".py", "/__init__.py"))
    return [path if path.name != "__init__.py" else path.parent for path in named if path.is_file()]


def shadowing() -> Iterator[Path]:
    """What this process would import instead of our packages."""
    for name in PACKAGES:
        found = importlib.util.find_spec(name)
        if found is not None and found.origin is not None:
            place = Path(found.origin).resolve()
            if place.parents[1] != HOME:
                yield place.parent if place.name == "__init__.py" else place


def refuse(paths: list[Path]) -> None:
    """Raises RequestError if there are any."""
    if paths:
        name = paths[0].stem
        raise RequestError(
            f"{str(paths[0])!r} is named like the package {name!r} of deconvoy and would be "
            f"imported in its stead: {REMEDY}."
        )
