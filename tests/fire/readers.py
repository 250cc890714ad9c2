"""Many readers of a service at once: ``python -m tests.fire.readers URL TOKEN READERS SECONDS``.

The paths come on standard input, one a line; each reader has a connection of its own, asks for one
path after another, and waits for the whole answer.  Prints one line of JSON.  It speaks plain
HTTP/1.1 over asyncio's streams: a client for two hundred readers must cost less than the service.
"""

import asyncio
import json
import random
import resource
import sys
import time
from collections import Counter
from typing import Any
from urllib.parse import urlsplit


async def ask(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str, head: str
) -> tuple[int, int]:
    """Status and bytes of one answer."""
    writer.write(f"GET {path} HTTP/1.1\r\n{head}\r\n".encode())
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {
        name.lower(): value.strip() for name, _, value in (x.partition(":") for x in lines[1:])
    }
    if "content-length" in headers:
        size = len(await reader.readexactly(int(headers["content-length"])))
    else:
        size = 0
        while count := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
            size += len(await reader.readexactly(count))
            await reader.readexactly(2)
        await reader.readexactly(2)
    return int(lines[0].split()[1]), size


async def read(url: str, token: str, paths: list[str], readers: int, seconds: float) -> Any:
    host, port = urlsplit(url).hostname, urlsplit(url).port
    head = f"Host: {host}:{port}\r\nAuthorization: Bearer {token}\r\n"
    times: list[float] = []
    statuses: Counter[str] = Counter()
    total = 0
    end = time.perf_counter() + seconds

    async def one(seed: int) -> None:
        nonlocal total
        order = random.Random(seed)
        try:
            reader, writer = await asyncio.open_connection(host, port)
            while time.perf_counter() < end:
                begin = time.perf_counter()
                path = order.choice(paths)
                status, size = await ask(reader, writer, path, head)
                times.append(time.perf_counter() - begin)
                statuses[str(status)] += 1
                if status != 200:
                    statuses[f"{status} {path}"] += 1
                total += size
            writer.close()
        except (OSError, asyncio.IncompleteReadError) as error:
            statuses[f"{type(error).__name__}: {error}"] += 1

    await asyncio.gather(*(one(seed) for seed in range(readers)))
    times.sort()
    quantiles = {f"p{q}": times[min(len(times) - 1, len(times) * q // 100)] for q in (50, 95, 99)}
    return {"answers": len(times), "statuses": dict(statuses), "bytes": total, **quantiles}


def main() -> None:
    url, token, readers, seconds = sys.argv[1:5]
    paths = sys.stdin.read().split()
    found = asyncio.run(read(url, token, paths, int(readers), float(seconds)))
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(json.dumps({**found, "client_seconds": used.ru_utime + used.ru_stime}))


if __name__ == "__main__":
    main()
