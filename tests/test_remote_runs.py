"""Runs at a service, by `deconvoy.Client` and by the commands `runs`, `edit` and `delete`."""

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import deconvoy
from deconvoy import errors
from service import logs
from service.app import create_app
from service.scopes import Scope
from tests.serving import served, settings_of, with_runs
from tests.typing_in import Type, type_

__all__ = ["type_"]


@pytest.fixture
def url(small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A service with two copies of a run: ``small`` and ``other``."""
    # It is in this process, and its log would be among what the commands print.
    monkeypatch.setattr(logs, "_tell", lambda *_: None)
    runs = with_runs(tmp_path / "runs", small_run)
    with_runs(tmp_path / "second", small_run).joinpath("small").rename(runs / "other")
    monkeypatch.chdir(tmp_path)
    with served(create_app(settings_of(tmp_path / "home", runs=str(runs)))) as address:
        monkeypatch.setenv("DECONVOY_URL", address)
        yield address


def test_a_program_names_tags_pins_and_deletes(url: str) -> None:
    with deconvoy.Client() as client:
        run = client.served_run("small")
        assert (run.url, run.tags, run.pinned) == (f"{url}/v1/runs/small", (), False)
        assert run.open().unit("relu5", 1).score.shape == (9,)
        edited = run.edit(name="Mine", tags=["a", "b"], pinned=True)
        assert (edited.name, edited.tags, edited.pinned) == ("Mine", ("a", "b"), True)
        assert run.name == "a small one" and run.refresh() == edited
        edited = client.edit_run("small", add_tags=["c"], remove_tags=["a"])
        assert (edited.name, edited.tags, edited.pinned) == ("Mine", ("b", "c"), True)
        assert run.edit(add_tags="whole").tags == ("b", "c", "whole")
        assert [found.id for found in client.runs(tag="whole")] == ["small"]
        assert [found.id for found in client.runs()] == ["small", "other"]
        assert repr(edited) == (
            "ServedRun('small' 'Mine', done, deconvoy/zfnet_small, 40 images, 4 layers, tags b, c, "
            "pinned)"
        )
        with pytest.raises(errors.RequestError, match="`deconvoy edit small --unpin`"):
            run.delete()
        assert run.edit(name="", tags=[], pinned=False) == run
        with pytest.raises(errors.RequestError, match="changes nothing"):
            run.edit()
        with pytest.raises(errors.RequestError, match="at most 64 characters"):
            run.edit(add_tags=["x" * 65])
        run.delete()
        assert [found.id for found in client.runs()] == ["other"]
        for ask in (run.delete, run.refresh, run.open, lambda: run.edit(pinned=True)):
            with pytest.raises(errors.RunNotFound, match="small"):
                ask()
        client.delete_run("other")
        assert list(client.runs()) == []


def test_a_token_that_may_not_is_told(
    small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = with_runs(tmp_path / "runs", small_run)
    app = create_app(settings_of(tmp_path / "home", runs=str(runs), tokens=True))
    with served(app) as address:
        tokens = app.state.gate.tokens
        with deconvoy.Client(address, tokens.create("reader", Scope.read)) as reader:
            with pytest.raises(errors.NotAllowed, match="'submit'"):
                reader.edit_run("small", pinned=True)
        with deconvoy.Client(address, tokens.create("submitter", Scope.submit)) as submitter:
            assert submitter.edit_run("small", add_tags=["a"]).tags == ("a",)
            with pytest.raises(errors.NotAllowed, match="'admin'"):
                submitter.delete_run("small")


def test_runs_are_listed(url: str, type_: Type) -> None:
    deconvoy.Client().edit_run("other", name="Mine", add_tags=["kept"], pinned=True)
    code, out, _ = type_("runs")
    assert code == 0
    heading, other, small = out.splitlines()
    assert heading.split() == "id name status model images created pinned tags".split()
    assert other.split()[:3] == ["other", "Mine", "done"] and other.split()[-2:] == ["yes", "kept"]
    assert small.split()[0] == "small"
    for options, ids in (
        (("--tag", "kept"), ["other"]),
        (("--search", "MINE"), ["other"]),
        (("--status", "done"), ["other", "small"]),
        (("--state", "failed"), []),
        (("--limit", "1"), ["other"]),
    ):
        code, out, _ = type_("runs", "--json", *options)
        assert code == 0 and [run["id"] for run in json.loads(out)] == ids, options
    assert json.loads(type_("runs", "--json", "--tag", "kept")[1])[0]["url"].endswith("/runs/other")
    assert "There are more than these 1" in type_("runs", "--limit", "1")[2]
    assert "No run fits" in type_("runs", "--tag", "none")[1]
    code, out, err = type_("runs", "--status", "dome")
    assert code == 2 and out == "" and "'dome'" in err and "'done'" in err


def test_a_run_is_edited(url: str, type_: Type) -> None:
    code, out, _ = type_("edit", "small", "--name", "A [b]", "--tag", "x", "--tag", "y", "--pin")
    assert (code, out) == (0, "small: called 'A [b]'; tagged x, y; pinned\n")
    code, out, _ = type_("edit", "small", "--untag", "x", "--unpin", "--name", "", "--json")
    told = json.loads(out)
    assert (told["name"], told["tags"], told["pinned"]) == ("a small one", ["y"], False)
    for wrong, rule in (
        (("small",), "give --name, --tag, --untag, --pin or --unpin"),
        (("smal", "--pin"), "nearest: small"),
        (("runs/small", "--pin"), "'runs/small' is a folder"),
        (("small", "--tag", " "), "none of them empty"),
    ):
        code, out, err = type_("edit", *wrong)
        assert code == 2 and out == "" and rule in err and err.count("\n") == 1, err


def test_runs_are_deleted_by_whoever_is_sure(
    url: str, type_: Type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, err = type_("delete", "small")
    assert code == 2 and "give --yes" in err
    for answer in ("n\n", "\n", ""):
        monkeypatch.setattr(sys, "stdin", Terminal(answer))
        code, out, err = type_("delete", "small", "other")
        assert code == 130 and out.strip() == "" and "Nothing was deleted" in err
        assert "small: a small one, done, deconvoy/zfnet_small, 40 images" in err
    assert sorted(place.name for place in (tmp_path / "runs").iterdir()) == ["other", "small"]
    code, out, err = type_("delete", "small", "missing", "--yes")
    assert code == 2 and out == "" and "'missing'" in err  # all are there, or none is deleted
    monkeypatch.setattr(sys, "stdin", Terminal("y\n"))
    code, out, _ = type_("delete", "small")
    assert (code, out.strip()) == (0, "small is deleted.")
    type_("edit", "other", "--pin")
    code, _, err = type_("delete", "other", "--yes")
    assert code == 2 and "`deconvoy edit other --unpin`" in err
    type_("edit", "other", "--unpin")
    code, out, _ = type_("delete", "other", "--yes")
    assert (code, out) == (0, "other is deleted.\n")
    assert list((tmp_path / "runs").iterdir()) == []
    assert "There are no runs" in type_("runs")[1]


class Terminal(io.StringIO):
    """Somebody who types."""

    def isatty(self) -> bool:
        return True
