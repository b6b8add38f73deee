"""The architecture as tests over the syntax trees: who imports whom, and how large things are.

pytest tests/test_architecture.py -s        # the rules, and the table of sizes
python tests/test_architecture.py           # the table alone
"""

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from statistics import median, quantiles

import pytest

ROOT = Path(__file__).resolve().parent.parent
Function = ast.FunctionDef | ast.AsyncFunctionDef

LAYERS: tuple[tuple[str, ...], ...] = (
    ("serving.units",),
    ("serving.records",),
    ("serving.core",),
    ("serving.cost", "serving.workload"),
    ("serving.mechanisms", "serving.policies", "serving.sim", "serving.live"),
    ("serving.testbed", "serving.diagnosis", "serving.instances", "serving.migrations", "serving.samples"),
    ("serving.consolidations",),
    ("serving.control",),
    ("serving.serve",),
    ("serving.live.setup",),
    ("serving.live.engine", "serving.live.replay"),
    ("serving.live.calibrate",),
    ("serving",),  # its __init__, the public face
    ("aebench",),
)
"""Lowest first. A package imports from itself and from lower layers, never from a sibling of its own layer."""

ENGINE_MAY_USE = ("numpy", "scipy")
"""Beside the standard library."""
LIVE_MAY_USE = (*ENGINE_MAY_USE, "safetensors", "tokenizers", "torch", "triton")
"""The live backend; see the extra of that name."""
SOLE_IMPORTERS = {
    "matplotlib": "aebench.plotting",
    "pyarrow": "aebench.log_format aebench.sealed_columns",
    "pydantic": "aebench",
    "starlette": "aebench.service",
    "tokenizers": "serving.live",
    "torch": "serving.live",
    "triton": "serving.live.gpu",
    "uvicorn": "aebench.service",
}
MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 60
MEDIAN_FUNCTION_LINES = 8
P90_FUNCTION_LINES = 25
MAX_PARAMETERS = 6
KERNEL = "a GPU kernel takes pointers, strides and compile-time constants one by one"
MORE_PARAMETERS = {
    "aebench.service.engine_port.submit": "a client's request, by keyword",
    "serving.cost.models._llama": "a row of the model table, by keyword",
    "serving.live.engine.submit": "a client's request, by keyword",
    "serving.live.gpu.attention_kernels.attend_head_group": KERNEL,
    "serving.live.gpu.attention_kernels.attend_one_head": KERNEL,
    "serving.live.gpu.row_kernels.add_rms_norm": KERNEL,
    "serving.live.gpu.row_kernels.multiply_row": KERNEL,
    "serving.live.gpu.row_kernels.rotate_and_store": KERNEL,
    "serving.live.gpu.row_kernels.unpack": KERNEL,
}
"""Functions that may take more, and why."""


@dataclass(frozen=True, slots=True)
class Import:
    """One imported module, and whether importing the importer imports it too."""

    module: str
    line: int
    eager: bool
    """At module level and not for type checkers alone."""


@dataclass(frozen=True, slots=True)
class Module:
    """A source file."""

    name: str
    path: Path
    tree: ast.Module
    num_lines: int

    def at(self, line: int) -> str:
        """A place in it, for messages."""
        return f"{self.path.relative_to(ROOT)}:{line}"


@cache
def modules() -> dict[str, Module]:
    """Every module of serving and aebench by its dotted name, in order of path."""
    found = {}
    for package in ("serving", "aebench"):
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            text = path.read_text()
            found[name] = Module(name, path, ast.parse(text), len(text.splitlines()))
    return found


def engine() -> list[Module]:
    """The modules of serving."""
    return [module for name, module in modules().items() if within(name, "serving")]


def within(name: str, package: str) -> bool:
    """Whether a dotted name is the package or below it."""
    return name == package or name.startswith(package + ".")


@cache
def imports(module: Module) -> tuple[Import, ...]:
    """All imports, wherever they are; ``from package import submodule`` is an import of the submodule."""
    return tuple(_imports(module))


def _imports(module: Module) -> Iterator[Import]:
    eager = {id(node) for node in eager_nodes(module.tree)}
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, id(node) in eager)
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None and node.level == 0, f"{module.at(node.lineno)}: relative import"
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                yield Import(submodule if submodule in modules() else node.module, node.lineno, id(node) in eager)


def eager_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """What runs when the module is imported, so far as imports go."""
    for child in ast.iter_child_nodes(node):
        type_checking = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        if not type_checking and not isinstance(child, Function):
            yield child
            yield from eager_nodes(child)


def layer_of(name: str) -> tuple[int, str]:
    """Height and group of a module: the longest prefix that is in the table."""
    groups = [(height, group) for height, layer in enumerate(LAYERS) for group in layer if within(name, group)]
    return max(groups, key=lambda found: len(found[1]))


@cache
def functions(module: Module) -> tuple[Function, ...]:
    """All functions and methods, nested ones too."""
    return tuple(node for node in ast.walk(module.tree) if isinstance(node, Function))


def num_lines(function: Function) -> int:
    """From ``def`` to the last line."""
    return (function.end_lineno or function.lineno) - function.lineno + 1


def parameters(function: Function) -> list[ast.arg]:
    """All parameters but ``self`` and ``cls``."""
    a = function.args
    every = [*a.posonlyargs, *a.args, *([a.vararg] if a.vararg else []), *a.kwonlyargs, *([a.kwarg] if a.kwarg else [])]
    return [parameter for parameter in every if parameter.arg not in ("self", "cls")]


def test_imports_point_down_the_layers() -> None:
    wrong = []
    for module in modules().values():
        height, group = layer_of(module.name)
        for found in imports(module):
            if within(found.module, "serving") or within(found.module, "aebench"):
                other_height, other_group = layer_of(found.module)
                if other_height > height or (other_height == height and other_group != group):
                    wrong.append(f"{module.at(found.line)}: {group} imports {found.module}")
    assert wrong == []


def test_every_module_of_serving_has_a_layer_of_its_own() -> None:
    assert [module.name for module in engine() if layer_of(module.name)[1] == "serving"] == ["serving"]


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {
        module.name: [found.module for found in imports(module) if found.eager and found.module in modules()]
        for module in modules().values()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def test_serving_uses_the_standard_library_and_numbers_only() -> None:
    allowed = (*sys.stdlib_module_names, "serving")
    wrong = [
        f"{module.at(found.line)}: {found.module}"
        for module in engine()
        for found in imports(module)
        if found.module.split(".")[0]
        not in (*allowed, *(LIVE_MAY_USE if within(module.name, "serving.live") else ENGINE_MAY_USE))
    ]
    assert wrong == []


def test_the_simulator_does_not_know_the_live_backend() -> None:
    wrong = [
        f"{module.at(found.line)}: {found.module}"
        for module in engine()
        if not within(module.name, "serving.live")
        for found in imports(module)
        if within(found.module, "serving.live")
    ]
    assert wrong == []


def test_no_system_imports_the_file_of_another_system() -> None:
    from serving.policies import SYSTEMS

    files = {system.controller.__module__ for system in SYSTEMS.values()}  # membership only
    wrong = [
        f"{module.at(found.line)}: {found.module}"
        for module in modules().values()
        if module.name in files
        for found in imports(module)
        if found.module in files
    ]
    assert len(files) >= 3
    assert wrong == []


def test_heavy_packages_are_imported_in_one_place_each() -> None:
    wrong = [
        f"{module.at(found.line)}: {found.module}"
        for module in modules().values()
        for found in imports(module)
        if not any(
            within(module.name, owner) for owner in SOLE_IMPORTERS.get(found.module.split(".")[0], module.name).split()
        )
    ]
    assert wrong == []


def test_the_command_line_imports_nothing_heavy_before_a_command_runs() -> None:
    allowed = (*sys.stdlib_module_names, "click", "aebench")
    cli = modules()["aebench.cli"]
    eager = [found.module for found in imports(cli) if found.eager]
    assert [name for name in eager if name.split(".")[0] not in allowed] == []
    assert {name for name in eager if within(name, "aebench")} == {"aebench.errors"}
    assert [f.module for f in imports(modules()["aebench.errors"]) if f.module.split(".")[0] not in allowed] == []


def test_files_and_functions_are_short() -> None:
    wrong = [f"{m.at(1)}: {m.num_lines} lines" for m in modules().values() if m.num_lines > MAX_FILE_LINES]
    wrong += [
        f"{module.at(function.lineno)}: {function.name} has {num_lines(function)} lines"
        for module in modules().values()
        for function in functions(module)
        if num_lines(function) > MAX_FUNCTION_LINES
    ]
    assert wrong == []


def test_most_functions_are_very_short() -> None:
    print("\n" + size_table())
    lengths = [num_lines(function) for module in modules().values() for function in functions(module)]
    assert median(lengths) <= MEDIAN_FUNCTION_LINES
    assert quantiles(lengths, n=10)[-1] <= P90_FUNCTION_LINES


def test_no_function_takes_more_parameters_than_a_noun_would_hold() -> None:
    wrong = [
        f"{module.at(function.lineno)}: {function.name} takes {len(parameters(function))}"
        for module in modules().values()
        for function in functions(module)
        if len(parameters(function)) > MAX_PARAMETERS and f"{module.name}.{function.name}" not in MORE_PARAMETERS
    ]
    assert wrong == []


def size_table() -> str:
    """Files, lines, and the lengths of functions, per package."""
    rows = [f"{'package':<20} {'files':>5} {'lines':>6} {'functions':>9} {'median':>6} {'p90':>5} {'max':>4}"]
    packages = dict.fromkeys(package_of(module) for module in modules().values())
    for package in (*packages, "all"):
        members = [module for module in modules().values() if package in (package_of(module), "all")]
        lengths = sorted(num_lines(function) for module in members for function in functions(module)) or [0]
        p90 = quantiles(lengths, n=10)[-1] if len(lengths) > 1 else lengths[0]
        lines = sum(module.num_lines for module in members)
        shape = f"{len(lengths):>9} {median(lengths):>6.0f} {p90:>5.0f} {lengths[-1]:>4}"
        rows.append(f"{package:<20} {len(members):>5} {lines:>6} {shape}")
    return "\n".join(rows)


def package_of(module: Module) -> str:
    """The folder of a module, dotted."""
    return ".".join(module.path.relative_to(ROOT).parent.parts)


if __name__ == "__main__":
    print(size_table())
