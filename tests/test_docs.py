"""The documentation says what is so: tables, commands and files it names."""

import ast
import re
from pathlib import Path

import yaml

from deconvoy import queries, spec_page
from deconvoy.format_page import as_markdown
from deconvoy.schema import LAYER_ARRAYS, OCCLUSION_ARRAYS, UNIT_OCCLUSION
from deconvoy.spec import JobSpec
from deconvoy.study_spec import StudySpec
from service.cli import app

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
READING = (ROOT / "docs/reading.md").read_text(encoding="utf-8")
ARCHITECTURE = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_the_run_format_page_is_the_schema() -> None:
    page = (ROOT / "docs/run-format.md").read_text(encoding="utf-8")
    assert page == as_markdown(), "run `make docs`"
    arrays = (*LAYER_ARRAYS, *OCCLUSION_ARRAYS, UNIT_OCCLUSION)
    assert all(f"| `{field.name}` |" in page for field in arrays)


def test_the_job_spec_page_is_the_spec() -> None:
    page = (ROOT / "docs/job-spec.md").read_text(encoding="utf-8")
    assert page == spec_page.as_markdown(), "run `make docs`"
    job, study = blocks(page, "yaml")
    assert JobSpec.parse(yaml.safe_load(job)).projection is not None
    assert StudySpec.parse(yaml.safe_load(study)).titles == ("base", "without 3, 4", "narrow")


def test_python_in_the_documents_compiles() -> None:
    found = [blocks(page, "python") for page in (README, READING)]
    assert all(found)
    for block in sum(found, []):
        ast.parse(block)


def test_the_job_spec_in_the_readme_is_one() -> None:
    (block,) = blocks(README, "yaml")
    assert JobSpec.parse(yaml.safe_load(block)).model.name == "torchvision/squeezenet1_1"


def test_commands_in_the_readme_exist() -> None:
    pages = README + READING.replace("import deconvoy\n", "")
    named = set(re.findall(r"\bdeconvoy ([a-z]+)\b", pages)) - {"does", "import"}
    known = {command.name or command.callback.__name__ for command in app.registered_commands}
    assert named and named <= known


def test_the_reading_page_has_every_query_as_it_is_typed() -> None:
    rows = re.findall(r"^\| `([a-z-]+(?: [^`]*)?)` \|", READING, re.MULTILINE)
    assert rows == [queries.usage(query) for query in queries.QUERIES.values()]


def test_verbs_in_the_documents_are_in_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    contributing = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for verb in set(re.findall(r"`make ([a-z]+)", README + contributing)):
        assert re.search(rf"^{verb}:.*## ", makefile, re.MULTILINE), verb


def test_files_the_documents_name_are_there() -> None:
    linked = re.findall(r"\]\(((?!http)[^)#]+)\)", README)
    named = re.findall(r"`((?:deconvoy|workers|service|tests)/[a-z_/.]+)`", ARCHITECTURE)
    for path in {*linked, *named}:
        assert (ROOT / path).exists(), path


def test_the_architecture_page_has_the_data_flow() -> None:
    assert "data set ─shards─▶ actors ─partial top nine─▶ merge ─▶ projections" in ARCHITECTURE
