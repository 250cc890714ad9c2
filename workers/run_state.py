"""Keep the state that a run tells of itself true while it is worked on, whatever happens."""

import errno
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from deconvoy import tombstone
from deconvoy.errors import DeconvoyError, JobStopped, RunBusy, RunUnreachable
from deconvoy.store import METADATA, RunStore
from workers.seal import finish

_REFUSED_WRITES = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO,
)  # fmt: skip


@contextmanager
def told_in_state(run: RunStore, remedy: str | None = None) -> Iterator[None]:
    """Keep the run's state attribute true, whatever happens.

    Args:
        remedy: what to do where it was stopped, if not resume it.

    Raises:
        JobStopped: in the place of Ctrl-C.
    """
    remedy = remedy or f"Nothing finished is lost: `deconvoy resume {run.url}` goes on."

    def tell(**state: str) -> None:
        with suppress(OSError):  # a full disk may have no room even for this
            run.zarr("r+").attrs.update({"state": state})

    _require_kept(run)
    try:
        run.zarr("r+").attrs.update({"state": {"status": "running"}})
        yield
        finish(run)
    except KeyboardInterrupt:
        tell(status="stopped")
        raise JobStopped(f"Stopped. {remedy}") from None
    except RunBusy:
        raise  # the run is another driver's now, and so is its state
    except OSError as error:
        if not isinstance(error, RunUnreachable) and (
            isinstance(error, DeconvoyError) or error.errno not in _REFUSED_WRITES
        ):
            tell(status="failed", error=str(error))
            raise
        refused = run.refused(error)
        tell(status="failed", error=str(refused))
        raise refused from error
    except BaseException as error:
        tell(status="failed", error=str(error))
        raise


def _require_kept(run: RunStore) -> None:
    """It may have been deleted since it was opened, before we had the driver's lock.

    Raises:
        RunNotFound: it was.
    """
    tombstone.refuse(run.url, json.loads(run.read(METADATA)))
