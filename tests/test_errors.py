"""Test what every error owes: a builtin to catch it by, an exit code, and a way through pickle."""

import pickle

import pytest

from deconvoy import errors

CLASSES = [
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, errors.DeconvoyError)
]


def an_error(cls: type[errors.DeconvoyError]) -> errors.DeconvoyError:
    if cls is errors.MissingExtra:
        return errors.MissingExtra("xarray", "Run.xarray")
    return cls("The disk is full: make room.")


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_error_survives_pickling(cls: type[errors.DeconvoyError]) -> None:
    error = an_error(cls)
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is cls
    assert str(back) == str(error)
    assert back.args == error.args


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_error_ends_the_command_line_with_a_documented_code(
    cls: type[errors.DeconvoyError],
) -> None:
    assert cls.exit_code in (1, 2, 130)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_error_says_in_the_code_when_it_is_raised(cls: type[errors.DeconvoyError]) -> None:
    assert cls.__doc__


@pytest.mark.parametrize(
    ("cls", "builtin"),
    [
        (errors.RequestError, ValueError),
        (errors.ModelUnsupported, errors.RequestError),
        (errors.ClusterTooSmall, errors.RequestError),
        (errors.MissingExtra, ImportError),
        (errors.RunNotFound, FileNotFoundError),
        (errors.JobNotFound, LookupError),
        (errors.KeyReused, errors.RequestError),
        (errors.CatalogueUnavailable, ConnectionError),
        (errors.CatalogueNewer, RuntimeError),
        (errors.RunExists, FileExistsError),
        (errors.RunUnreadable, OSError),
        (errors.ImageUnreadable, OSError),
        (errors.DiskTooSmall, OSError),
        (errors.RunBusy, RuntimeError),
        (errors.TooManyBadImages, RuntimeError),
        (errors.JobFailed, RuntimeError),
        (errors.ActivationInvalid, ArithmeticError),
        (errors.NotAllowed, PermissionError),
        (errors.ServiceError, RuntimeError),
        (errors.ServiceUnreachable, ConnectionError),
        (errors.WaitTimedOut, TimeoutError),
    ],
)
def test_errors_are_caught_as_the_builtin_they_are(
    cls: type[Exception], builtin: type[Exception]
) -> None:
    assert issubclass(cls, builtin)


def test_a_missing_extra_says_how_to_install_it() -> None:
    error = errors.MissingExtra("xarray", "Run.xarray")
    assert str(error) == (
        "Run.xarray needs the extra 'xarray', which is not installed: "
        "pip install 'deconvoy[xarray]'."
    )
    assert (error.extra, error.needed_for) == ("xarray", "Run.xarray")
