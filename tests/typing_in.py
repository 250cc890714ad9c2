"""Type a command in this process: the fixture ``type_`` of all tests of the command line."""

from collections.abc import Callable
from pathlib import Path

import pytest

from service.cli import main

Type = Callable[..., tuple[int, str, str]]


@pytest.fixture
def type_(capfd: pytest.CaptureFixture[str]) -> Type:
    """Type a command; its exit code, standard output and standard error."""

    def typed(*arguments: str | Path) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            main([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        code = end.value.code
        assert isinstance(code, int)
        return code, captured.out, captured.err

    return typed
