"""The command `deconvoy token`, on the catalogue that the settings name."""

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from service.settings import read_settings
from tests.typing_in import Type, type_

__all__ = ["type_"]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, catalogue_url: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DECONVOY_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DECONVOY_DATABASE", catalogue_url)
    return tmp_path / "home"


def test_a_token_is_made_shown_once_listed_and_revoked(type_: Type) -> None:
    code, out, err = type_("token", "create", "ana", "--scope", "submit", "--days", "30")
    secret = out.strip()
    assert code == 0 and secret.startswith("dv_") and "\n" not in secret
    assert "'ana' may read, and submit and cancel jobs" in err and secret not in err
    type_("token", "create", "bo")
    code, out, _ = type_("token", "list", "--json")
    ana, bo = json.loads(out)
    assert (ana["name"], ana["scope"], ana["state"], ana["used"]) == (
        "ana",
        "submit",
        "valid",
        None,
    )
    left = datetime.fromisoformat(ana["expires"]) - datetime.now(UTC)
    assert timedelta(days=29) < left <= timedelta(days=30)
    assert (bo["scope"], bo["expires"]) == ("read", None)
    code, out, _ = type_("token", "revoke", "ana")
    assert (code, out) == (0, "The token 'ana' is revoked.\n")
    assert [row["state"] for row in json.loads(type_("token", "list", "--json")[1])] == [
        "revoked",
        "valid",
    ]
    table = type_("token", "list")[1]
    assert "revoked" in table and "bo" in table and secret not in table


def test_wrong_ones_are_told_in_a_sentence(type_: Type) -> None:
    assert "There are no tokens" in type_("token", "list")[1]
    type_("token", "create", "ana")
    for arguments, told in (
        (("create", "ana"), "There is a token 'ana' already"),
        (("create", "local"), "does not fit a token"),
        (("revoke", "bo"), "There is no token 'bo' to revoke"),
        (("create", "cy", "--scope", "root"), "'root' is not one of"),
        (("create", "cy", "--days", "0"), "greater than or equal to 1"),
    ):
        code, out, err = type_("token", *arguments)
        assert code == 2 and told in " ".join(err.replace("│", " ").split()), arguments
        assert not out


def test_a_catalogue_that_cannot_be_reached_is_told(
    type_: Type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DECONVOY_DATABASE", "postgresql+psycopg://ana:very-secret@127.0.0.1:1/x")
    code, _, err = type_("token", "list")
    assert code == 1 and "ana:***@127.0.0.1:1/x cannot be used" in err
    assert "very-secret" not in err


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("DECONVOY_PORT", "http", "The setting DECONVOY_PORT does not fit"),
        ("DECONVOY_HOSTS", "a.example", "lists are written as JSON"),
    ],
)
def test_a_setting_that_does_not_fit_is_told(
    type_: Type, monkeypatch: pytest.MonkeyPatch, name: str, value: str, told: str
) -> None:
    monkeypatch.setenv(name, value)
    code, _, err = type_("token", "list")
    assert code == 2 and told in err


def test_options_go_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DECONVOY_PORT", "8001")
    assert (read_settings().port, read_settings(port=8002).port) == (8001, 8002)


def test_help_loads_no_database() -> None:
    code = (
        "import sys, service.cli\n"
        "loaded = {'sqlalchemy', 'alembic', 'fastapi', 'pydantic_settings'} & set(sys.modules)\n"
        "assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_first_token_is_made_where_none_is_valid(type_: Type) -> None:
    code, out, _ = type_("token", "create", "operator", "--scope", "admin", "--first")
    assert code == 0 and out.startswith("dv_")
    for name in ("operator", "another"):
        code, out, err = type_("token", "create", name, "--first")
        assert (code, out) == (0, "") and "valid tokens already" in err
    type_("token", "revoke", "operator")
    code, out, _ = type_("token", "create", "operator", "--scope", "admin", "--first")
    assert code == 0 and out.startswith("dv_")
