"""What stands in a run's ``zarr.json`` while the run is deleted, until that file goes, last of all.

A deletion takes a while and can be cut off.  From its first step on nobody may read the run, since
chunks that are gone read as fill; to its last step something must tell that there is something to
delete.  So the attributes stay, by which a run is known, and the node is no Zarr group any more,
which Zarr's own readers refuse, too.
"""

import json
from typing import Any

from deconvoy.errors import RunBeingDeleted

NODE_TYPE = "deleted"
"""In the place of Zarr's ``group``."""


def engraved(content: bytes) -> bytes:
    """The tombstone of a run.

    Args:
        content: of its ``zarr.json``; what cannot be parsed stays as it is, since nobody reads it.
    """
    try:
        metadata: Any = json.loads(content)
        return json.dumps({**metadata, "node_type": NODE_TYPE}).encode()
    except (ValueError, TypeError):
        return content


def refuse(url: str, metadata: Any) -> None:
    """Raises RunBeingDeleted: whose ``zarr.json`` this is, parsed, is no run any more."""
    if isinstance(metadata, dict) and metadata.get("node_type") == NODE_TYPE:
        raise RunBeingDeleted(
            f"The run at {url!r} is being deleted, or its deletion was cut off: delete it again to "
            "finish, or write a new run there with --overwrite."
        )
