"""Execute functions for tests of hosts and runner: tiny points that succeed, raise, crash or wait."""

import errno
import os
import random
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from aebench.point import Point
from serving.records import DecisionRecord, Record, RequestRecord, StageRecord

Write = Callable[[Record], None]


def make_point(index: int = 0, seed: int = 0, **spec: object) -> Point:
    """A point of the experiment ``paper/tiny``, told apart by its grid value ``index``."""
    return Point(experiment="paper/tiny", keys={"index": index}, seed=seed, spec=spec)


def make_request(request_id: int = 0, **changes: object) -> RequestRecord:
    """A finished request of three output tokens: TTFT 1 s, TPOT 0.5 s, E2E 2 s."""
    fields: dict[str, object] = {
        "request_id": request_id,
        "model": "opt-2.7b",
        "label": "measured",
        "arrived_at": 0.0,
        "dispatched_at": 0.25,
        "first_token_at": 1.0,
        "finished_at": 2.0,
        "num_prompt_tokens": 5,
        "num_output_tokens": 3,
        "num_preemptions": 0,
        "instance": 0,
        "ttft_slo": None,
        "tpot_slo": None,
        "token_gaps": (0.4, 0.6),
    }
    return RequestRecord(**{**fields, **changes})  # type: ignore[arg-type]  # checked by the dataclass


def make_stage(**changes: object) -> StageRecord:
    """A stage of a cold start."""
    fields: dict[str, object] = {
        "instance": 0,
        "rank": 0,
        "model": "opt-2.7b",
        "server": "s0",
        "stage": "fetch",
        "started_at": 0.0,
        "ended_at": 0.1,
        "num_bytes": 1.5e9,
    }
    return StageRecord(**{**fields, **changes})  # type: ignore[arg-type]  # checked by the dataclass


def make_decision(at: float = 0.1) -> DecisionRecord:
    """A decision to dispatch."""
    return DecisionRecord(at=at, hook="on_arrival", action="Dispatch", detail="request 0 -> instance 0")


def succeed(point: Point, write: Write) -> None:
    """Writes ten requests drawn from the point's seed and index."""
    draw = random.Random(f"{point.seed}/{point.name}")
    for number in range(10):
        arrived, first, gap = (draw.random() for _ in range(3))
        token_at = arrived + first
        finished = token_at + 2 * gap
        write(
            make_request(
                number,
                arrived_at=arrived,
                first_token_at=token_at,
                finished_at=finished,
                token_gaps=(gap, gap),
                ttft_slo=0.5,
            )
        )


def succeed_after_20_ms(point: Point, write: Write) -> None:
    """As ``succeed``, with some computing before."""
    end = time.monotonic() + 0.02
    while time.monotonic() < end:
        pass
    succeed(point, write)


def wait_long(point: Point, write: Write) -> None:
    """Succeeds at once for index 0, and only after ten seconds for any other."""
    succeed(point, write)
    if point.keys["index"] != 0:
        time.sleep(10)


def die_once(point: Point, write: Write) -> None:
    """Dies by SIGKILL the first time that a point with an odd index runs."""
    write(make_request())
    mark = Path(str(point.spec["marks"])) / point.name
    if int(point.keys["index"]) % 2 and not mark.exists():
        mark.touch()
        print("the last line", file=sys.stderr, flush=True)
        os.kill(os.getpid(), 9)


def exit_at_1(point: Point, write: Write) -> None:
    """Ends its process whenever index 1 runs."""
    if point.keys["index"] == 1:
        print("about to exit", file=sys.stderr, flush=True)
        os._exit(7)
    succeed(point, write)


def raise_at_1(point: Point, write: Write) -> None:
    """Raises whenever index 1 runs, and leaves a mark for each attempt."""
    if point.keys["index"] == 1:
        with (Path(str(point.spec["marks"])) / "attempts").open("a") as file:
            file.write("x")
        raise ValueError("no such model: opt-9b")
    succeed(point, write)


def fill_disk(point: Point, write: Write) -> None:
    """At index 1, writes more than its process may write to a file; the kernel refuses."""
    if point.keys["index"] == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
    for number in range(2000):
        write(make_request(number))


def no_space(point: Point, write: Write) -> None:
    """Finds the disk full by itself."""
    write(make_request())
    raise OSError(errno.ENOSPC, "No space left on device", point.name)


def report_process(point: Point, write: Write) -> None:
    """Leaves its process id where the test finds it, then waits."""
    folder = Path(str(point.spec["marks"]))
    (folder / "new").write_text(str(os.getpid()))
    (folder / "new").rename(folder / "pid")
    time.sleep(30)
    write(make_request())


def cold_starts(point: Point, write: Write) -> float:
    """Two measured cold starts of a container and an engine, the first token 1 s, 2 s... after arrival by the place of
    the system in the alphabet; on a clock that is 2 ms late."""
    systems = ("hydraserve", "hydraserve_with_single_worker", "serverless_vllm", "serverlessllm")
    seconds = 1.0 + systems.index(str(point.spec["system"])) + 0.1 * point.seed
    for number in range(2):
        at = 100.0 * number
        write(make_stage(instance=number, stage="container", started_at=at, ended_at=at + 0.25))
        write(make_stage(instance=number, stage="engine", started_at=at + 0.25, ended_at=at + seconds - 0.25))
        request = make_request(number, instance=number, arrived_at=at, first_token_at=at + seconds, num_output_tokens=1)
        write(replace(request, finished_at=at + seconds, token_gaps=()))
    return 0.002
