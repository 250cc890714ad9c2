"""The commands of docs/walk.md, typed one after the other, on fewer images.

All in this process: each would spend seconds on importing torch alone.
"""

import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import deconvoy
from tests.typing_in import Type, type_

__all__ = ["type_"]

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs/walk.md").read_text(encoding="utf-8")

TRAINED, VALIDATED = 20, 10
LESS = ["--images", str(TRAINED), "--epochs", "1"]
"""Two images of a class to train on and one to look at: enough for every command."""

INLINE = {command: ["--executor", "inline"] for command in ("run", "extend")}


def blocks(language: str) -> Iterator[str]:
    for found, block in re.findall(r"```(\w*)\n(.*?)```", PAGE, re.DOTALL):
        if found == language:
            yield block


def commands() -> list[list[str]]:
    return [shlex.split(line) for block in blocks("") for line in block.splitlines()]


@pytest.mark.timeout(600)
def test_every_command_of_the_walk_does_what_it_says(
    type_: Type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (program, script, *arguments), *others = commands()
    assert program == "python"
    monkeypatch.setattr(sys, "argv", [script, *arguments, *LESS])
    runpy.run_path(str(ROOT / script), run_name="__main__")

    (shown,) = blocks("yaml")
    assert yaml.safe_load(shown) == yaml.safe_load(Path("work/after.yaml").read_text())

    told: dict[str, str] = {}
    for program, command, *arguments in others:
        assert program == "deconvoy"
        code, out, err = type_(command, *arguments, *INLINE.get(command, []))
        assert code == 0, f"{command} {shlex.join(arguments)}\n{out}\n{err}"
        told[f"{command} {arguments[0]}"] = out + err
    assert "folder names" in told["run work/after.yaml"]
    assert "top-1" in told["run work/after.yaml"]
    assert "layer3.1.relu_1" in told["diff work/runs/before"]
    for name in ("after.png", "before.png", "hits.parquet", "report.html"):
        assert Path("work", name).stat().st_size > 1000, name
    before, after, more = (deconvoy.open(f"work/runs/{n}") for n in ("before", "after", "more"))
    assert before.layer_names == after.layer_names
    assert more.images().num_rows == TRAINED + VALIDATED
    for number in (0, 11):  # of those that `figure --units 0-11` draws
        assert after.unit("layer3.1.relu_1", number).projections.any()
