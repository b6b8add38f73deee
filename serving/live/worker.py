"""A worker process: one pipeline stage of an instance, from the bare interpreter to steps.

    python -m serving.live.worker --fd N

Commands come as frames over the socket N, each with ``op`` and ``id``; the answer has the ``id`` and ``ok``, and an
``error`` in one line where that is false. The first frame is the worker's own, ``{"event": "hello", "pid": ...}``.

    libraries                                   import torch and the model code
    context    device                           open the device: "cpu", "cuda:N"
    part       part, region                     what is to be loaded, and the shared memory that it arrives in; further
                                                parts, of other layers, may come once it serves
    load       first_layer, tensors [i, j),     copy tensors of the part from that layer on to the device, once they
               loader                           have arrived
    profile    num_tokens, MODEL                one forward pass
    engine     MODEL, STAGE, inlet, cores       make the KV cache, meet the neighbours; others may give KV at ``inlet``
    step       num_stages, a StepBatch          the last stage answers with a StepSample; the others only if they fail
    kv_read    num_stages, blocks               their bytes, in the order of ``StageRunner.kv_read``
    kv_write   num_stages, blocks               and back
    kv_take    num_stages, KV, rate             take others' KV, at a rate at most (or null)
    kv_give    num_stages, KV, to               give it to the process that listens at ``to``
    kv_drop    move                             stop a take or a give; what comes behind runs when it writes no more
    grow                                        of all parts, make an engine of one stage beside that of the pipeline
    shed       num_stages                       the pipeline is no more: end its engine
    exit

MODEL is ``config`` (ModelConfig), ``dtype`` and ``threads``; the first command with it builds the model. STAGE is
``rank``, ``num_stages``, ``listen``, ``connect``, ``num_blocks`` and ``block_size``. KV is ``move``, the number of the
move, ``layers``, ``blocks`` and ``patience``, the time without a byte after which the other process has stalled; the
answer has the ``outcome``. Elsewhere ``num_stages`` says which engine is meant.

The device, parts and their loading, growth and KV that comes or goes have a thread of their own, so that tensors stream
to the device while the main thread imports, and later, as KV does, while it computes steps; everything else happens on
the main thread in order of arrival. The process ends when control's end of the socket closes, even in the middle of a
step.
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
from serving.live.kv_move import KvTraffic
from serving.live.part import Part
from serving.live.shared_region import SharedRegion
from serving.live.signals import leave_signals_to_control
from serving.live.worker_stages import Device, Weights, open_device

if TYPE_CHECKING:
    from serving.live.kv_move import Rows
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
        self._parts: dict[int, Weights] = {}
        """By first layer; the first is that of the stage."""
        self._runner: StageRunner | None = None
        """Of the stage."""
        self._engines: dict[int, PipelineStage] = {}
        """By number of stages."""
        self._traffic = KvTraffic()
        self._main: SimpleQueue[Command] = SimpleQueue()
        self._side: SimpleQueue[Command] = SimpleQueue()
        self._on_main: dict[str, Callable[[Header, bytes], Answer | None]] = {
            "libraries": self._import_libraries,
            "profile": self._profile,
            "engine": self._start_engine,
            "step": self._run_step,
            "kv_read": self._read_kv,
            "kv_write": self._write_kv,
            "kv_drop": self._drop_kv,
            "shed": self._shed,
        }
        self._beside: dict[str, Callable[[Header, bytes], Answer | None]] = {
            "context": self._open_context,
            "part": self._take_part,
            "load": self._load,
            "grow": self._grow,
            "kv_take": self._take_kv,
            "kv_give": self._give_kv,
        }

    def run(self) -> None:
        """Greet, then carry out commands until control hangs up; does not return."""
        self._send({"event": "hello", "pid": os.getpid()}, [])
        threading.Thread(target=self._receive, name="commands", daemon=True).start()
        threading.Thread(target=self._carry_out, args=(self._side, self._beside), name="loading", daemon=True).start()
        self._carry_out(self._main, self._on_main)

    def end(self, code: int = 0) -> None:
        """Leave at once, whatever runs: nobody waits for its result any more, and the system takes all memory back."""
        try:
            for close in [*(engine.close for engine in [*self._engines.values()]), self._traffic.close]:
                close()
        finally:
            os._exit(code)

    def _receive(self) -> None:
        """On the commands' thread: hand each command to the thread that carries it out."""
        try:
            while True:
                header, payload = recv_frame(self._sock)
                if header.get("op") == "exit":
                    self._send({"id": header.get("id"), "ok": True}, [])
                    break
                self._note_move(header)
                (self._side if header.get("op") in self._beside else self._main).put((header, payload))
        except (EOFError, OSError):
            pass
        except BaseException:
            traceback.print_exc()
            self.end(1)
        self.end()

    def _note_move(self, header: Header) -> None:
        """A move of KV can be stopped from the moment at which its command is here, and is as soon as that one's is."""
        match header:
            case {"op": "kv_take" | "kv_give", "move": int(number)}:
                self._traffic.expect(number)
            case {"op": "kv_drop", "move": int(number)}:
                self._traffic.drop(number)

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
        if self._device is None or (self._parts and not self._engines):
            raise LiveError("part: a worker takes one after its context, and others once its engine runs")
        part = Part.from_json(header["part"])
        region = SharedRegion.open(header["region"])
        self._parts[part.layers.start] = Weights(part, region, self._device, self._libraries)
        return {}, []

    def _load(self, header: Header, _payload: bytes) -> Answer:
        weights = _made(self._parts.get(header["first_layer"]), "part")
        first, stop = header["tensors"]
        weights.load(first, stop, Loader(header["loader"]))
        return {}, []

    def _profile(self, header: Header, _payload: bytes) -> Answer:
        self._model(header).profile(header["num_tokens"])
        return {}, []

    def _start_engine(self, header: Header, _payload: bytes) -> Answer:
        from serving.live.pipeline_stage import PipelineStage, StagePlace

        if self._engines:
            raise LiveError("engine: it runs already")
        place, runner = StagePlace.of(header), self._model(header)
        runner.allocate(place.num_blocks, place.block_size)
        runner.bind(header.get("cores", ()))
        self._engines[place.num_stages] = PipelineStage(runner, place.listen, place.connect)
        self._traffic.listen(header["inlet"])
        return {}, []

    def _run_step(self, header: Header, payload: bytes) -> Answer | None:
        sampled = self._engine(header).step(header, payload)
        return None if sampled is None else sampled.encode()

    def _read_kv(self, header: Header, _payload: bytes) -> Answer:
        return {}, [self._engine(header).kv_read(header["blocks"])]

    def _write_kv(self, header: Header, payload: bytes) -> Answer:
        self._engine(header).kv_write(header["blocks"], payload)
        return {}, []

    def _grow(self, _header: Header, _payload: bytes) -> Answer:
        from serving.live.pipeline_stage import PipelineStage

        runner = _made(self._runner, "engine")
        rest = [weights for weights in self._parts.values() if weights.part.layers != runner.layers]
        tensors = {name: tensor for weights in rest for name, tensor in weights.tensors().items()}
        self._engines[1] = PipelineStage(runner.grown(tensors))
        return {}, []

    def _take_kv(self, header: Header, _payload: bytes) -> Answer:
        rate, patience = header["rate"], header["patience"]
        return self._move_kv(header, lambda number, rows: self._traffic.take(number, rows, rate, patience))

    def _give_kv(self, header: Header, _payload: bytes) -> Answer:
        to, patience = header["to"], header["patience"]
        return self._move_kv(header, lambda number, rows: self._traffic.give(number, to, rows, patience))

    def _move_kv(self, header: Header, carry: "Callable[[int, Rows], str]") -> Answer:
        number = header["move"]
        try:
            rows = self._engine(header).runner.kv_rows(range(*header["layers"]), header["blocks"])
            return {"outcome": carry(number, rows), "bytes": rows.num_bytes}, []
        finally:
            self._traffic.end(number)

    def _drop_kv(self, header: Header, _payload: bytes) -> None:
        self._traffic.await_end(header["move"])

    def _shed(self, header: Header, _payload: bytes) -> Answer:
        self._engine(header).close()
        del self._engines[header["num_stages"]]
        self._runner = None
        return {}, []

    def _engine(self, header: Header) -> "PipelineStage":
        """The one that a command means."""
        num_stages = header["num_stages"]
        if self._engines and num_stages not in self._engines:
            raise LiveError(f"{header['op']}: no engine of {num_stages} stages here, only of {[*self._engines]}")
        return _made(self._engines.get(num_stages), "engine")

    def _model(self, header: Header) -> "StageRunner":
        """The runner over the loaded tensors, built at the first need."""
        if self._runner is None:
            import torch

            from serving.live.config import ModelConfig
            from serving.live.runner import StageRunner

            weights = _made(next(iter(self._parts.values()), None), "part")
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
    return f"{op}: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def main() -> None:
    """The process."""
    parser = argparse.ArgumentParser(prog="python -m serving.live.worker", description="One stage of an instance.")
    parser.add_argument("--fd", type=int, required=True, help="socket to control, inherited")
    options = parser.parse_args()
    leave_signals_to_control()
    Worker(socket.socket(fileno=options.fd)).run()


if __name__ == "__main__":
    main()
