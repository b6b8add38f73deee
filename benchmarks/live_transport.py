"""Rates of the live transport over loopback, and how well its links keep to the rates they are given.

    python benchmarks/live_transport.py                     # about 1 minute; 1 GB of weights
    python benchmarks/live_transport.py --size 4e9 --links 4

A storage process, a prefetcher process a link, and parts that go into shared memory, verified: what a live cold start
does. Rates are of wall time, so neighbours on the machine count; the best of some repeats is shown.
"""

import argparse
import statistics
import tempfile
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from serving.live.checkpoint import Checkpoint
from serving.live.frames import recv_frame, send_frame
from serving.live.make import make_checkpoint
from serving.live.processes import PrefetcherProcess, start_prefetcher, start_storage
from serving.live.shapes import Changes, config_table
from serving.units import GB, MB, BytesPerSecond, Gbps, Seconds

LIMITS: tuple[BytesPerSecond, ...] = (0.2 * Gbps, 2 * Gbps, 16 * Gbps)
ACCURACY_TIME: Seconds = 0.5
MODEL = "random"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """What one link got."""

    num_bytes: int
    first_byte: Seconds
    """From the command to the first verified bytes."""
    total: Seconds
    rate: BytesPerSecond
    """Between the first and the last news of verified bytes: what the link does once it runs."""


def fetch_all(
    prefetchers: list[PrefetcherProcess], store: tuple[str, int], layers: range, serial: int
) -> tuple[Seconds, list[Fetched]]:
    """Fetch the same layers over every link at once: the time until the last is done, and what each link saw."""
    began = time.monotonic()
    for prefetcher in prefetchers:
        order = {"op": "fetch", "id": serial, "store": list(store), "link": prefetcher.live.name, "model": MODEL}
        region = f"aebench-{prefetcher.run_id}-{serial}"
        send_frame(prefetcher.socket, {**order, "layers": [layers.start, layers.stop], "region": region})
    with ThreadPoolExecutor(len(prefetchers)) as threads:
        fetched = list(threads.map(partial(_wait, began=began), prefetchers))
    took = time.monotonic() - began
    for prefetcher in prefetchers:
        send_frame(prefetcher.socket, {"op": "free", "region": f"aebench-{prefetcher.run_id}-{serial}"})
    return took, fetched


def _wait(prefetcher: PrefetcherProcess, began: Seconds) -> Fetched:
    news: list[tuple[Seconds, int]] = []
    while True:
        event, _ = recv_frame(prefetcher.socket)
        now = time.monotonic() - began
        if event["event"] == "failed":
            raise RuntimeError(event["error"])
        if event["event"] == "progress":
            news.append((now, event["received"]))
        if event["event"] == "done":
            (first_at, first), (last_at, last) = news[0], news[-1]
            rate = (last - first) / max(last_at - first_at, 1e-9)
            return Fetched(num_bytes=last, first_byte=first_at, total=now, rate=rate)


def _steady(runs: list[tuple[Seconds, list[Fetched]]]) -> BytesPerSecond:
    return statistics.median(link.rate for _, fetched in runs for link in fetched)


def measure(folder: Path, num_links: int, limit: BytesPerSecond | None, layers: range, repeats: int) -> None:
    """Fetch over some links at once, from a fresh storage server, and print the best repeat."""
    began = time.monotonic()
    storage = start_storage({MODEL: folder}, link_rate=limit)
    prefetchers = [start_prefetcher(f"server{link}", f"bench{link}") for link in range(num_links)]
    ready = time.monotonic() - began
    try:
        runs = [fetch_all(prefetchers, storage.address, layers, serial) for serial in range(repeats)]
    finally:
        for process in (storage, *prefetchers):
            process.stop()
    took, fetched = min(runs, key=lambda run: run[0])
    steady = "" if limit is None else f", between progress events {100 * (_steady(runs) / limit - 1):+.2f} %"
    slowest = max(fetched, key=lambda link: link.total)
    rate = slowest.num_bytes / took
    against = "" if limit is None else f"  {100 * (rate / limit - 1):+6.2f} % of the limit"
    asked = "no limit" if limit is None else f"{limit / Gbps:g} Gb/s"
    print(
        f"{num_links} x {asked:<10} {slowest.num_bytes / MB:6.0f} MB in {took:6.3f} s: {rate / GB:6.3f} GB/s a link, "
        f"{num_links * rate / GB:6.3f} in all{against}{steady}   first bytes {1e3 * slowest.first_byte:.0f} ms, "
        f"storage ready {ready:.2f} s"
    )


def checksum_rate(repeats: int) -> None:
    """What checking costs by itself."""
    block = memoryview(bytearray(range(256)) * (1 << 18))
    for name, function in (("crc32", zlib.crc32), ("adler32", zlib.adler32)):
        times = []
        for _ in range(repeats):
            began = time.perf_counter()
            function(block)
            times.append(time.perf_counter() - began)
        print(f"{name:<20} {block.nbytes / min(times) / GB:6.2f} GB/s")


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", type=float, default=1 * GB, help="bytes of weights, at least 2e7 (default: 1e9)")
    parser.add_argument("--links", type=int, default=4, help="links at once (default: 4)")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    checksum_rate(options.repeats)
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / MODEL
        num_layers = max(1, round(options.size / 10e6))
        changes = Changes(layers=num_layers, hidden=512, heads=8, kv_heads=8, ffn=2581, vocab=512)
        make_checkpoint(model, config_table("llama2-7b", changes, "bfloat16"), 0, share_layers=True)
        layer = Checkpoint.open(model).part(range(1, 2), MODEL).size
        for links in (1, options.links):
            measure(model, links, None, range(num_layers), options.repeats)
            for limit in LIMITS:
                layers = min(num_layers, max(1, round(ACCURACY_TIME * limit / layer)))
                measure(model, links, limit, range(layers), options.repeats)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
