"""Migrations: those under way, and their ends when an instance or a client goes."""

from collections.abc import Callable
from dataclasses import dataclass, field

from serving.core.actions import Migrate
from serving.core.clock import Flow, spawn
from serving.core.instance import Instance
from serving.core.move import Move
from serving.core.ports import Backend
from serving.core.request import Sequence
from serving.mechanisms.migration import Migration
from serving.records import MigrationRecord, PauseRecord


@dataclass(slots=True, eq=False)
class Migrations:
    """The migrations of a run."""

    backend: Backend
    note: Callable[[MigrationRecord | PauseRecord], None]
    on_end: Callable[[Migrate], None]
    """Called when one has ended by itself."""
    _under_way: dict[Move, tuple[Migration, Flow]] = field(default_factory=dict)

    def start(self, action: Migrate) -> str:
        """Begin one; what is begun, in words."""
        migration = Migration(action, self.backend, self.note)
        flow = spawn(self.backend.clock, migration.run())
        self._under_way[migration.move] = migration, flow
        flow.done.wait(lambda _: self._ended(migration))
        return (
            f"request {action.sequence.request.request_id} from instance {action.source.instance_id} to "
            f"{action.target.instance_id}"
        )

    def lose(self, instance: Instance) -> None:
        """An instance dies: what was on its way from it or to it stays where it is, which may be there."""
        move = instance.move
        if move is not None:
            self._stop(move, "source lost" if instance is move.source else "target lost")

    def take_back(self, sequence: Sequence) -> None:
        """A client wants its sequence back: should it be on its way, it goes nowhere."""
        move = None if sequence.instance is None else sequence.instance.move
        if move is not None and move.sequence is sequence:
            self._stop(move, "aborted")

    def close(self) -> None:
        """The run ends."""
        for move in list(self._under_way):
            self._stop(move, "run ended")

    def _stop(self, move: Move, reason: str) -> None:
        migration, flow = self._under_way.pop(move)
        flow.cancel()
        migration.end(reason)

    def _ended(self, migration: Migration) -> None:
        if self._under_way.pop(migration.move, None) is not None:
            self.on_end(migration.action)
