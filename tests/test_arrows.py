"""Which package may load which, and that no file of ours hides one of somebody else's.

`make lint` holds the arrows between our packages (import-linter); here is what it cannot see: what
is loaded at run time, and which single file imports Ray.
"""

import ast
import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import numpy as np
import pytest
from jaxtyping import TypeCheckError

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("deconvoy", "workers", "service", "dashboard")
RAY_EXECUTOR = "workers/executors/ray.py"
HEAVY = {"torch", "torchvision", "ray"}

PRINT_WHAT_IS_LOADED = f"\nprint('loaded', json.dumps(sorted({HEAVY!r} & sys.modules.keys())))"
IMPORT_EVERY_MODULE = """
import importlib, json, pkgutil, sys
package = importlib.import_module({package!r})
for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
"""
ASK_FOR_HELP = """
import json, sys
from service.cli import main
sys.argv = ["deconvoy", *{arguments!r}]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
"""


def sources() -> list[str]:
    """Our modules as paths below the repository: `workers/topk.py`."""
    files = (file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))
    return sorted(file.relative_to(ROOT).as_posix() for file in files)


def imported_roots(source: str) -> Iterator[str]:
    """First components of everything a file imports, inside functions too; ours included."""
    for node in ast.walk(ast.parse((ROOT / source).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


def loaded_by(code: str) -> list[str]:
    """Which of torch, torchvision and Ray a fresh interpreter has loaded after this code."""
    done = subprocess.run(
        [sys.executable, "-c", code + PRINT_WHAT_IS_LOADED],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    loaded: list[str] = json.loads(done.stdout.rpartition("loaded ")[2])
    return loaded


@pytest.mark.parametrize("package", PACKAGES)
def test_package_is_the_one_of_this_repository(package: str) -> None:
    file = importlib.import_module(package).__file__
    assert file is not None and Path(file).parent == ROOT / package


def test_only_one_file_imports_ray() -> None:
    importers = {source for source in sources() if "ray" in imported_roots(source)}
    assert importers == {RAY_EXECUTOR}


def test_the_ray_executor_imports_no_torch() -> None:
    assert not {"torch", "torchvision"} & set(imported_roots(RAY_EXECUTOR))


@pytest.mark.parametrize("package", ["deconvoy", "service"])
def test_importing_every_module_loads_neither_torch_nor_ray(package: str) -> None:
    assert loaded_by(IMPORT_EVERY_MODULE.format(package=package)) == []


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["query", "."]], ids=" ".join)
def test_command_line_help_loads_neither_torch_nor_ray(arguments: list[str]) -> None:
    assert loaded_by(ASK_FOR_HELP.format(arguments=arguments)) == []


def test_the_command_line_loads_what_speaks_http_only_where_it_is_used() -> None:
    code = (
        "import sys, service.cli; print(*{'httpx', 'fastapi', 'sqlalchemy'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "\n"), done.stderr


def test_what_is_loaded_would_be_seen() -> None:
    pretend = "import json, sys, types; sys.modules['ray'] = types.ModuleType('ray')"
    assert loaded_by(pretend) == ["ray"]


def test_no_file_is_named_like_a_module_of_python_or_of_a_dependency() -> None:
    taken = (sys.stdlib_module_names | set(packages_distributions())) - set(PACKAGES)
    named_alike = {
        source
        for source in sources()
        if not source.endswith(("__init__.py", "__main__.py")) and Path(source).stem in taken
    }
    # The one exception is fixed by the design: the executor is named after what it wraps, and its
    # folder is never on the path.
    assert named_alike <= {RAY_EXECUTOR}


def test_no_file_of_the_dashboard_is_named_like_a_package_of_ours() -> None:
    """Streamlit puts the folder of its script on the path, where such a file would come first."""
    names = {Path(source).stem for source in sources() if source.startswith("dashboard/")}
    assert not names & set(PACKAGES)


def test_tests_are_a_flat_package() -> None:
    tests = ROOT / "tests"
    assert (tests / "__init__.py").is_file()
    # Those under fire are run apart from the others.
    assert {file.parent for file in tests.rglob("*.py")} <= {tests, tests / "fire"}


def test_annotated_shapes_are_checked_while_tests_run() -> None:
    from deconvoy.figures import signed_grey

    with pytest.raises(TypeCheckError, match="projection"):
        signed_grey(np.zeros((4, 4), np.float32))
