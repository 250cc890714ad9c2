"""The process that is a local Ray cluster: ``python -m service.head STATE``.

It is nobody's child, so that jobs go on when the service is killed; the file STATE says where it
is.  SIGTERM ends it.
"""

import json
import os
import sys
from pathlib import Path

from service import launcher


def main(state: Path) -> None:
    def announce(address: str) -> None:
        draft = state.with_suffix(".partial")
        draft.write_text(json.dumps({"pid": os.getpid(), "address": address}), encoding="utf-8")
        os.replace(draft, state)

    try:
        launcher.serve_cluster(announce)
    finally:
        state.unlink(missing_ok=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
