"""Read runs over and over while they are written: ``python -m tests.fire.reader FOLDER``.

Whatever can be seen must be whole: markers load, tables and arrays decode (they carry checksums),
lines of logs are JSON.  It ends when its standard input does, and says what it has read.
"""

import hashlib
import io
import json
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import zarr
from safetensors.numpy import load as load_weights

from deconvoy.store import METADATA, RunStore

DIGEST = hashlib.sha256().digest_size


def check(path: str, content: bytes) -> None:
    """Raises where a file is not whole."""
    if path.endswith(".npz"):
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            for name in arrays.files:
                arrays[name]
    elif path.endswith(".json"):
        json.loads(content)
    elif path.endswith(".parquet"):
        pq.read_table(io.BytesIO(content), page_checksum_verification=True)
    elif path.startswith("ledger/") and path.endswith(".safetensors"):
        assert hashlib.sha256(content[DIGEST:]).digest() == content[:DIGEST], "another digest"
    elif path.endswith(".safetensors"):
        load_weights(content)
    elif path.endswith(".jsonl"):
        for line in content.split(b"\n")[:-1]:
            json.loads(line)


def arrays_of(group: zarr.Group) -> Iterator[zarr.Array[Any]]:
    for _, member in group.members(max_depth=None):
        if isinstance(member, zarr.Array):
            yield member


def read(run: RunStore) -> Iterator[str | None]:
    """For everything that is read: what is wrong with it, or None."""
    for path in run.paths():
        if path.endswith((".partial", ".lock")):
            continue
        try:
            check(path, run.read(path))
        except FileNotFoundError:  # replaced or done with since it was listed
            continue
        except Exception as error:  # whatever it is, it is told
            yield f"{path}: {type(error).__name__}: {error}"
        yield None
    try:
        for array in arrays_of(run.zarr()):
            array[...]
            yield None
    except FileNotFoundError:
        pass
    except Exception as error:
        yield f"an array: {type(error).__name__}: {error}"


def main(folder: Path) -> None:
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    count, wrong = 0, list[str]()
    while not ended.is_set():
        for metadata in sorted(folder.glob(f"*/{METADATA}")):
            for found in read(RunStore(metadata.parent)):
                count += 1
                wrong += [] if found is None else [f"{metadata.parent.name}/{found}"]
        time.sleep(0.1)  # two cores are to be shared
    print(json.dumps({"reads": count, "wrong": wrong}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
