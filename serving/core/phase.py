"""Phase: where an instance is in its life."""

from enum import Enum


class Phase(Enum):
    """Where an instance is in its life."""

    STARTING = "starting"
    READY = "ready"
    RETIRED = "retired"
