"""Every error a person can meet, each a sentence: what, which value, what rule, what to do.

Each class is also the builtin a caller would catch.  All arguments go to ``super().__init__``, so
errors survive pickling on their way from an actor to the driver.
"""


class DeconvoyError(Exception):
    """Base of all our errors; ``exit_code`` is what the command line ends with."""

    exit_code = 1


class RequestError(DeconvoyError, ValueError):
    """The request itself is wrong: a field, a value, a name, a file that does not fit."""

    exit_code = 2


class MissingExtra(DeconvoyError, ImportError):
    """A part of Deconvoy that is not installed."""

    exit_code = 2

    def __init__(self, extra: str, needed_for: str) -> None:
        super().__init__(extra, needed_for)
        self.extra = extra
        self.needed_for = needed_for

    def __str__(self) -> str:
        return (
            f"{self.needed_for} needs the extra {self.extra!r}, which is not installed: "
            f"pip install 'deconvoy[{self.extra}]'."
        )


class FieldInvalid(RequestError):
    """A field of a request is wrong; ``field`` names it as the request does, dots for depth."""

    def __init__(self, told: str, field: str = "") -> None:
        super().__init__(told, field)
        self.told = told
        self.field = field

    def __str__(self) -> str:
        return self.told


class RunNotFound(DeconvoyError, FileNotFoundError):
    """No run, layer, unit or image by that name."""

    exit_code = 2


class RunBeingDeleted(RunNotFound):
    """What is left of a run whose deletion is under way, or was cut off."""


class RunExists(DeconvoyError, FileExistsError):
    """The place for a new run is taken."""

    exit_code = 2


class RunBusy(DeconvoyError, RuntimeError):
    """Another driver works on this run."""


class RunUnreadable(DeconvoyError, OSError):
    """A run is there but its bytes are not what its own tables promise."""


class RunUnreachable(DeconvoyError, ConnectionError):
    """The bucket or the service that a run lies at does not answer, or refuses."""


class ModelUnsupported(RequestError):
    """A model, or an operation in it, that has no rule."""


class ImageUnreadable(DeconvoyError, OSError):
    """One image that cannot be decoded; the scan records it and goes on."""


class FilesUnreachable(DeconvoyError, ConnectionError):
    """The store that images lie at does not answer now, which says nothing of any image."""


class OutsideRoots(DeconvoyError, PermissionError):
    """A file that whoever works for a service may not read."""


class TooManyBadImages(DeconvoyError, RuntimeError):
    """More unreadable images than ``data.max_bad`` allows."""


class ActivationInvalid(DeconvoyError, ArithmeticError):
    """NaN or infinity in a feature map."""


class MemoryShort(DeconvoyError, MemoryError):
    """A worker had not enough memory for a work item; it, or another, may have on the next try."""


class DiskTooSmall(DeconvoyError, OSError):
    """The run would not fit."""


class ClusterTooSmall(RequestError):
    """What was asked for can never be scheduled on this cluster."""


class ClusterUnreachable(DeconvoyError, ConnectionError):
    """A cluster, or something on it, that does not answer now."""


class JobConflict(DeconvoyError, RuntimeError):
    """What is asked of a job does not fit the state it is in."""

    exit_code = 2


class JobFailed(DeconvoyError, RuntimeError):
    """A work item failed for good; what was committed stays, and ``resume`` goes on."""


class JobStopped(DeconvoyError):
    """Stopped by the user; resumable."""

    exit_code = 130


class JobNotFound(DeconvoyError, LookupError):
    """The catalogue has no job by that id."""

    exit_code = 2


class KeyReused(RequestError):
    """An Idempotency-Key that already stands for another job."""


class CatalogueUnavailable(DeconvoyError, ConnectionError):
    """The database of the catalogue cannot be reached, or does not serve as one."""


class CatalogueNewer(DeconvoyError, RuntimeError):
    """The catalogue was written by a later version of Deconvoy."""


class NotAllowed(DeconvoyError, PermissionError):
    """The service wants a token, or one that may do more."""

    exit_code = 2


class ServiceError(DeconvoyError, RuntimeError):
    """The service failed at a request that was right, or what answers is no service of ours."""


class ServiceUnreachable(DeconvoyError, ConnectionError):
    """The service does not answer now; asking again later may help."""


class WaitTimedOut(DeconvoyError, TimeoutError):
    """A job has not ended in the time that somebody would wait; it goes on."""
