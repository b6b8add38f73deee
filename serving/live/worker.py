"""A worker process: one pipeline stage of an instance, from the bare interpreter to steps.

    python -m serving.live.worker --fd N

Commands come as frames over the socket N, each with ``op`` and ``id``; the answer has the ``id`` and ``ok``, and an
``error`` in one line where that is false. The first frame is the worker's own, ``{"event": "hello", "pid": ...}``.

    libraries                                   import torch and the model code
    context    device                           open the device: "cpu", "cuda:N"
    part       part, region                     what is to be loaded, and the shared memory that it arrives in
    load       tensors [i, j), loader           copy them to the device, once they have arrived
    profile    num_tokens, MODEL                one forward pass
    engine     MODEL, STAGE                     make the KV cache, meet the neighbours
    step       a StepBatch                      the last stage answers with a StepSample; the others only if they fail
    kv_read    blocks                           their bytes, in the order of ``StageRunner.kv_read``
    kv_write   blocks                           and back
    exit

MODEL is ``config`` (ModelConfig), ``dtype`` and ``threads``; the first command with it builds the model. STAGE is
``rank``, ``num_stages``, ``listen``, ``connect``, ``num_blocks`` and ``block_size``.

The device, the part and its loading have a thread of their own, without torch, so that tensors stream to the device
while the main thread imports; everything else happens on the main thread in order of arrival. The process ends when
control's end of the socket closes, even in the middle of a step.
"""

import argparse
import os
import socket
import threading
import traceback
from collections.abc import Callable
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

from serving.core.stages import Loader
from serving.live.errors import LiveError
from serving.live.frames import recv_frame, send_frame
from serving.live.part import Part
from serving.live.shared_region import SharedRegion
from serving.live.signals import leave_signals_to_control
from serving.live.worker_stages import Device, Weights, open_device

if TYPE_CHECKING:
    from serving.live.pipeline_stage import PipelineStage
    from serving.live.runner import StageRunner

T = TypeVar("T")
Header = dict[str, Any]
Answer = tuple[Header, list[memoryview]]
Command = tuple[Header, bytes]


class Worker:
    """The state of the process, and what each command does to it."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._sending = threading.Lock()
        self._libraries = threading.Event()
        self._device: Device | None = None
        self._weights: Weights | None = None
        self._runner: StageRunner | None = None
        self._stage: PipelineStage | None = None
        self._main: SimpleQueue[Command] = SimpleQueue()
        self._side: SimpleQueue[Command] = SimpleQueue()
        self._on_main: dict[str, Callable[[Header, bytes], Answer | None]] = {
            "libraries": self._import_libraries,
            "profile": self._profile,
            "engine": self._start_engine,
            "step": self._run_step,
            "kv_read": self._read_kv,
            "kv_write": self._write_kv,
        }
        self._beside: dict[str, Callable[[Header, bytes], Answer | None]] = {
            "context": self._open_context,
            "part": self._take_part,
            "load": self._load,
        }

    def run(self) -> None:
        """Greet, then carry out commands until control hangs up; does not return."""
        self._send({"event": "hello", "pid": os.getpid()}, [])
        threading.Thread(target=self._receive, name="commands", daemon=True).start()
        threading.Thread(target=self._carry_out, args=(self._side, self._beside), name="loading", daemon=True).start()
        self._carry_out(self._main, self._on_main)

    def end(self, code: int = 0) -> None:
        """Leave at once, whatever runs: nobody waits for its result any more, and the system takes all memory back."""
        if self._stage is not None:
            self._stage.close()
        os._exit(code)

    def _receive(self) -> None:
        """On the commands' thread: hand each command to the thread that carries it out."""
        try:
            while True:
                header, payload = recv_frame(self._sock)
                if header.get("op") == "exit":
                    self._send({"id": header.get("id"), "ok": True}, [])
                    break
                (self._side if header.get("op") in self._beside else self._main).put((header, payload))
        except (EOFError, OSError):
            pass
        except BaseException:
            traceback.print_exc()
            self.end(1)
        self.end()

    def _carry_out(self, commands: SimpleQueue[Command], methods: dict[str, Callable[..., Answer | None]]) -> None:
        while True:
            header, payload = commands.get()
            answer: Answer | None
            try:
                op = header.get("op")
                if op not in methods:
                    raise LiveError(f"no command {op!r}; expected one of {', '.join([*self._on_main, *self._beside])}")
                answer = methods[op](header, payload)
                if answer is not None:
                    answer[0]["ok"] = True
            except Exception as error:
                answer = ({"ok": False, "error": _describe(header, error)}, [])
            if answer is not None:
                self._send({**answer[0], "id": header.get("id")}, answer[1])

    def _send(self, header: Header, buffers: list[memoryview]) -> None:
        try:
            with self._sending:
                send_frame(self._sock, header, *buffers)
        except OSError:
            self.end()  # control is gone

    def _import_libraries(self, _header: Header, _payload: bytes) -> Answer:
        import serving.live.pipeline_stage  # noqa: F401 - and with it torch and the models

        self._libraries.set()
        return {}, []

    def _open_context(self, header: Header, _payload: bytes) -> Answer:
        self._device = open_device(header["device"])
        return {}, []

    def _take_part(self, header: Header, _payload: bytes) -> Answer:
        if self._device is None or self._weights is not None:
            raise LiveError("part: a worker takes one, after its context")
        part = Part.from_json(header["part"])
        self._weights = Weights(part, SharedRegion.open(header["region"]), self._device, self._libraries)
        return {}, []

    def _load(self, header: Header, _payload: bytes) -> Answer:
        first, stop = header["tensors"]
        _made(self._weights, "part").load(first, stop, Loader(header["loader"]))
        return {}, []

    def _profile(self, header: Header, _payload: bytes) -> Answer:
        self._model(header).profile(header["num_tokens"])
        return {}, []

    def _start_engine(self, header: Header, _payload: bytes) -> Answer:
        from serving.live.pipeline_stage import PipelineStage, StagePlace

        if self._stage is not None:
            raise LiveError("engine: it runs already")
        self._stage = PipelineStage(self._model(header), StagePlace.of(header))
        return {}, []

    def _run_step(self, header: Header, payload: bytes) -> Answer | None:
        sampled = _made(self._stage, "engine").step(header, payload)
        return None if sampled is None else sampled.encode()

    def _read_kv(self, header: Header, _payload: bytes) -> Answer:
        return {}, [_made(self._stage, "engine").kv_read(header["blocks"])]

    def _write_kv(self, header: Header, payload: bytes) -> Answer:
        _made(self._stage, "engine").kv_write(header["blocks"], payload)
        return {}, []

    def _model(self, header: Header) -> "StageRunner":
        """The runner over the loaded tensors, built at the first need."""
        if self._runner is None:
            import torch

            from serving.live.config import ModelConfig
            from serving.live.runner import StageRunner

            weights = _made(self._weights, "part")
            torch.set_num_threads(header["threads"])
            config = ModelConfig.from_json(header["config"])
            tensors, layers = weights.tensors(), weights.part.layers
            self._runner = StageRunner(config, layers, tensors, weights.device.name, header["dtype"])
        return self._runner


def _made(thing: T | None, command: str) -> T:
    if thing is None:
        raise LiveError(f"the command {command!r} comes first")
    return thing


def _describe(header: Header, error: Exception) -> str:
    """What went wrong, in one line; the trace of what should not go wrong goes to the log."""
    op = header.get("op")
    if isinstance(error, LiveError):
        return f"{op}: {error}" if op else str(error)
    traceback.print_exc()
    if isinstance(error, KeyError) and error.args and error.args[0] not in header:
        return f"{op}: the command lacks {error.args[0]!r}"
    first = (str(error).splitlines() or [""])[0]
    return f"{op}: {type(error).__name__}: {first}"


def main() -> None:
    """The process."""
    parser = argparse.ArgumentParser(prog="python -m serving.live.worker", description="One stage of an instance.")
    parser.add_argument("--fd", type=int, required=True, help="socket to control, inherited")
    options = parser.parse_args()
    leave_signals_to_control()
    Worker(socket.socket(fileno=options.fd)).run()


if __name__ == "__main__":
    main()
