"""Stage graphs that several systems start their workers by."""

from serving.core.stages import Loader, Stage, StageGraph, Work

SERIAL_START = StageGraph(
    stages=(
        Stage(name="container"),
        Stage(name="libraries", after=("container",)),
        Stage(name="context", after=("libraries",)),
        Stage(name="fetch", work=Work.FETCH, after=("context",)),
        Stage(name="load", work=Work.LOAD, after=("fetch",), loader=Loader.ENGINE),
        Stage(name="profile", work=Work.PROFILE, after=("load",)),
        Stage(name="engine", after=("profile",)),
    )
)
"""Of an engine as it is: all stages in series (HydraServe sheet, section 4, first column)."""
