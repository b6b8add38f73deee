"""Serves the fake engine in a process of its own: python -m tests.live.serve_fake PORT STEP_TIME DRAIN_TIMEOUT."""

import sys

from aebench.errors import AebenchError
from aebench.service.server import Listening, bind, listen, url_of
from aebench.service.service import Service
from tests.live.fake_engine import FakeEngine, tiny


def main(port: int, step_time: float, drain_timeout: float) -> int:
    """The exit code."""
    listening = Listening(port=port, drain_timeout=drain_timeout)
    try:
        bound = bind(listening)
    except AebenchError as error:
        print(f"Error: {error}", file=sys.stderr)
        return error.exit_code
    engine = FakeEngine(step_time=step_time)
    try:
        return listen(Service(engine, [tiny()]), bound, listening, lambda: print(url_of(bound), flush=True))
    finally:
        engine.close()


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])))
