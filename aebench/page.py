"""Page: gathers what the HTML report shows: figures, provenance, parameters with their sources."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from aebench.catalog import Catalog
from aebench.errors import LogError
from aebench.experiment import Experiment
from aebench.plotting.draw import draw_svg
from aebench.point_log import placed_by, replacing
from aebench.report_html import Calibration, FigureSection, Parameter, ReportInput, render_html
from aebench.stages import StageRow, stage_rows
from aebench.workflow import Drawn
from serving.cost import gpus, memory, roofline
from serving.cost.models import MODELS
from serving.policies import configured
from serving.policies.knobs import parameters


def write_page(catalog: Catalog, drawn: Sequence[Drawn], log_path: Path, out: Path) -> None:
    """Write the page; draws each figure anew into it."""
    page = ReportInput(
        title="aebench report",
        log_path=str(log_path),
        figures=[_section(catalog, each) for each in drawn],
        parameters=list(_parameters(catalog, drawn)),
        calibrations=list(_calibrations(catalog, drawn)),
    )
    if not out.absolute().parent.is_dir():
        raise LogError(f"{out}: there is no folder {out.absolute().parent}")
    with placed_by("--out"), replacing(out) as file:
        file.write(render_html(page).encode())


def _section(catalog: Catalog, drawn: Drawn) -> FigureSection:
    return FigureSection(
        figure=drawn.figure,
        result=drawn.result,
        svg=draw_svg(drawn.figure, drawn.summary, calibrated=drawn.calibrated, caption=drawn.caption),
        caption=drawn.caption,
        manifest=drawn.log.manifest,
        log=str(drawn.log.folder),
        departures=list(_departures(_experiment(catalog, drawn))),
        stages=_stages(catalog, drawn),
    )


def _stages(catalog: Catalog, drawn: Drawn) -> list[StageRow]:
    """The stages of a figure that draws one cold start a request; over a stream of requests they say little."""
    file = _experiment(catalog, drawn).file
    return stage_rows(drawn.log, file.measure.labels) if file.workload.kind == "cold_requests" else []


def _experiment(catalog: Catalog, drawn: Drawn) -> Experiment:
    return catalog.experiment(drawn.figure.experiment, world=drawn.log.manifest.world)


def _systems(experiment: Experiment) -> list[tuple[str, dict[str, Any]]]:
    """Systems of an experiment with the knobs that it changes, each once."""
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for cell in experiment.cells():
        spec = experiment.resolve(cell)
        found.setdefault(f"{spec['system']} {spec['policy']}", (spec["system"], spec["policy"]))
    return list(found.values())


def _departures(experiment: Experiment) -> Iterator[str]:
    """The **Departures** paragraph of each system's module, word for word."""
    import sys

    modules = dict.fromkeys(configured(name, policy).controller.__module__ for name, policy in _systems(experiment))
    for module in modules:
        text = sys.modules[module].__doc__ or ""
        if "**Departures**:" in text:
            paragraph = text.split("**Departures**:")[1].split("\n\n")[0]
            yield f"{module.rpartition('.')[2]}: {' '.join(paragraph.replace('``', '').split())}"


def _parameters(catalog: Catalog, drawn: Sequence[Drawn]) -> Iterator[Parameter]:
    """Every number that the figures rest on, each once."""
    seen: set[tuple[str, str]] = set()
    for each in drawn:
        experiment = _experiment(catalog, each)
        areas = (_declared(experiment), _testbed(catalog, experiment), _policies(experiment), _engine(experiment))
        for parameter in chain.from_iterable(areas):
            if (parameter.area, parameter.name) not in seen:
                seen.add((parameter.area, parameter.name))
                yield parameter


def _declared(experiment: Experiment) -> Iterator[Parameter]:
    """Workload, deployments and what differs for some values of the grid, as the experiment's file has them."""
    file = experiment.file
    tables: dict[str, Any] = {"workload": file.workload.model_dump(exclude_unset=True), "when": file.when}
    tables |= {"cache_gib": file.cache_gib} if file.cache_gib else {}
    tables |= {"cache_gb": file.cache_gb} if file.cache_gb is not None else {}
    tables |= {"deployments": {model: table.model_dump(exclude_none=True) for model, table in file.deployments.items()}}
    for name, value in _flat(tables):
        sources = [source for key, source in file.sources.items() if name == key or name.startswith(f"{key}.")]
        yield Parameter(
            area=f"experiment {experiment.experiment_id}",
            name=name,
            value=_text(value),
            unit=_unit(name) or ("s" if name.endswith(("_slo", "gap", "phase")) else ""),
            source=sources[-1] if sources else f"experiments/{experiment.experiment_id}.toml",
        )


def _flat(tables: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and the scalars that they hold."""
    for key, value in tables.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _testbed(catalog: Catalog, experiment: Experiment) -> Iterator[Parameter]:
    paper = experiment.experiment_id.partition("/")[0]
    calibration = catalog.calibration(paper).file
    calibrated = {p.name: p for p in calibration.parameter} if calibration else {}
    bed = experiment.testbeds.testbed[experiment.file.testbed]
    area = f"{paper}, {experiment.file.testbed}"
    yield Parameter(area=area, name="servers", value=_text(bed.servers), unit="", source=bed.source)
    yield Parameter(area=area, name="stores", value=str(bed.stores), unit="", source=bed.source)
    yield Parameter(area=area, name="store_nic_gbps", value=_text(bed.store_nic_gbps), unit="Gbps", source=bed.source)
    for server in bed.servers:
        table = experiment.testbeds.server[server]
        flat = table.model_dump(exclude={"sources", "startup", "engine"}, exclude_none=True)
        startup = {} if table.startup is None else table.startup.model_dump()
        flat |= {f"startup.{key}": value for key, value in startup.items()}
        engine = {} if table.engine is None else table.engine.model_dump(exclude_unset=True)
        flat |= {f"engine.{key}": value for key, value in engine.items()}
        for key, value in flat.items():
            name = f"server.{server}.{key}"
            source = table.sources.get(key, "calibrated on the paper's points, see below")
            yield Parameter(
                area=area,
                name=name,
                value=_text(value),
                unit=calibrated[name].unit if name in calibrated else _unit(key),
                source=source,
                calibrated=name in calibrated,
            )


def _policies(experiment: Experiment) -> Iterator[Parameter]:
    for name, policy in _systems(experiment):
        for parameter in parameters(configured(name, policy).config):
            changed = " (changed by the experiment)" if parameter.name in policy else ""
            yield Parameter(
                area=f"policy {name}{changed}",
                name=parameter.name,
                value=_text(parameter.value),
                unit=parameter.unit,
                source=parameter.source,
            )


def _engine(experiment: Experiment) -> Iterator[Parameter]:
    kinds = {experiment.testbeds.server[s].gpu for s in experiment.testbeds.testbed[experiment.file.testbed].servers}
    for slug in sorted(kinds & set(gpus.GPUS)):
        gpu = gpus.GPUS[slug]
        for key, unit in (("memory", "B"), ("memory_bandwidth", "B/s"), ("fp16_flops", "FLOP/s")):
            yield Parameter(
                area="GPUs",
                name=f"{slug}.{key}",
                value=_text(getattr(gpu, key)),
                unit=unit,
                source=gpu.source,
            )
    tables = experiment.file.deployments
    for slug in dict.fromkeys(table.architecture or name for name, table in tables.items()):
        model = MODELS[slug]
        yield Parameter(
            area="models",
            name=f"{slug}.weight_bytes",
            value=_text(model.weight_bytes),
            unit="B",
            source=model.source,
        )
    for number in (*gpus.CONSTANTS, *memory.CONSTANTS, *roofline.CONSTANTS):
        yield Parameter(
            area="cost model",
            name=number.name,
            value=_text(number.value),
            unit=number.unit,
            source=number.source,
        )


def _calibrations(catalog: Catalog, drawn: Sequence[Drawn]) -> Iterator[Calibration]:
    for paper in dict.fromkeys(each.figure.paper for each in drawn):
        file = catalog.calibration(paper).file
        for parameter in file.parameter if file else ():
            assert file is not None
            residual = ", ".join(f"{name} {100 * file.residual[name]:.1f}%" for name in parameter.points)
            yield Calibration(
                parameter=parameter.name,
                value=_text(parameter.value),
                unit=parameter.unit,
                points=[_points_text(file.points[name]) for name in parameter.points],
                residual=residual,
            )


def _points_text(group: Any) -> str:
    keys = " ".join(f"{key}={_text(value)}" for key, value in group.keys.items())
    return f"{group.figure} {keys}"


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{count} {name}" for name, count in value.items())
    if isinstance(value, list):
        return "|".join(map(str, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _unit(key: str) -> str:
    for suffix, unit in (("_gb_s", "GB/s"), ("_gbps", "Gbps"), ("_gb", "GB"), ("_gib", "GiB"), ("_tokens", "tokens")):
        if key.endswith(suffix):
            return unit
    return ""
