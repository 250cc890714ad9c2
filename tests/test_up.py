"""`deconvoy up` itself; what it serves is tested elsewhere."""

import os
import stat
from pathlib import Path

import httpx
import pytest

from deconvoy.errors import RequestError, RunNotFound
from deconvoy.token_file import token_for
from service import up
from service.app import create_app
from tests.serving import served, settings_of


def test_two_services_do_not_share_a_home(tmp_path: Path) -> None:
    with up._only_one(tmp_path, "http://127.0.0.1:8000"):
        with pytest.raises(RequestError, match=rf"8000, process {os.getpid()}.*DECONVOY_HOME"):
            with up._only_one(tmp_path, "http://127.0.0.1:8001"):
                pass
    with up._only_one(tmp_path, "http://127.0.0.1:8001"):
        pass


def test_a_browser_is_led_somewhere(tmp_path: Path) -> None:
    with served(create_app(settings_of(tmp_path))) as address:
        answer = httpx.get(f"{address}/", follow_redirects=True)
    assert answer.status_code == 200
    assert str(answer.url).endswith("/docs")


def test_the_catalogue_is_nobody_elses_to_read(tmp_path: Path) -> None:
    with served(create_app(settings_of(tmp_path))):
        for file in tmp_path.glob("catalogue.db*"):
            if not file.name.endswith(".lock"):
                assert stat.S_IMODE(file.stat().st_mode) == 0o600, file.name


@pytest.mark.parametrize("token", ["a\nb", "ünï", "a b"])
def test_a_token_that_can_be_none_is_refused_and_not_shown(token: str) -> None:
    with pytest.raises(RequestError, match="no token has") as refused:
        token_for("http://127.0.0.1:8000", token)
    assert token not in str(refused.value)


def test_a_run_that_is_not_there_is_told_before_anything_is_started(tmp_path: Path) -> None:
    with pytest.raises(RunNotFound, match="no run at .*nowhere.*nothing to show"):
        up.up([str(tmp_path / "nowhere")], ray="none")
