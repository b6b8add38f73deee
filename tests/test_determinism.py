"""Determinism as tests over the syntax trees: no time but the clock's, no draw without a seed, no order from a set."""

import ast
import re
from collections.abc import Iterator

import pytest

from tests.test_architecture import engine, imports, modules, within

NEVER_IN_ENGINE = ("asyncio", "threading", "time", "multiprocessing", "socket", "subprocess")
"""Only the clock waits, and simulated time is the only time there is."""
NEVER_IN_CHOICES = ("io", "logging", "os", "pathlib", "sys", "tempfile")
"""The domain, its mechanisms and its policies do no I/O."""
PURE = ("serving.core", "serving.cost", "serving.mechanisms", "serving.policies", "serving.sim")


def test_nothing_in_serving_but_the_live_backend_knows_the_time_of_day_or_another_thread() -> None:
    wrong = [
        f"{module.at(found.line)}: {found.module}"
        for module in engine()
        if not within(module.name, "serving.live")
        for found in imports(module)
        if found.module.split(".")[0] in NEVER_IN_ENGINE
    ]
    assert wrong == []


def test_core_mechanisms_policies_and_cost_do_no_io() -> None:
    wrong = [
        f"{module.at(found.line)}: {found.module}"
        for module in engine()
        if any(within(module.name, package) for package in PURE)
        for found in imports(module)
        if found.module.split(".")[0] in NEVER_IN_CHOICES
    ]
    wrong += [
        f"{module.at(node.lineno)}: {node.func.id}()"
        for module in engine()
        if any(within(module.name, package) for package in PURE)
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("open", "print", "input")
    ]
    assert wrong == []


def test_every_random_draw_in_serving_comes_from_a_seeded_stream() -> None:
    wrong = []
    for module in engine():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ImportFrom) and node.module == "random":
                wrong += [f"{module.at(node.lineno)}: {a.name}" for a in node.names if a.name != "Random"]
            elif isinstance(node, ast.Attribute):
                text = ast.unparse(node)
                if re.fullmatch(
                    r"random\.(?!Random$)\w+|(np|numpy)\.random\.(?!default_rng$|Generator$|Philox$|RandomState$)\w+",
                    text,
                ):
                    wrong.append(f"{module.at(node.lineno)}: {text}")
            elif isinstance(node, ast.Call) and not node.args and ast.unparse(node.func) in ("Random", "random.Random"):
                wrong.append(f"{module.at(node.lineno)}: Random() without a seed")
    assert wrong == []


@pytest.mark.parametrize(
    "code",
    [
        "for x in {1, 2}: pass",
        "[x for x in set(items)]",
        "list({x for x in items})",
        "a = set()\nfor x in a: pass",
        "class A:\n    held: set[int]\n    def f(self):\n        return tuple(self.held)",
        "for x in a.keys() - b: pass",
        "','.join(frozenset(items) | other)",
        "for i, x in enumerate({1, 2}): pass",
        "def f(a: set[int]):\n    return sum(a)",
        "x = min({1, 2}, key=len)",
        "f(*{1, 2})",
        "a = {1}\na.pop()",
    ],
)
def test_an_order_taken_from_a_set_is_found(code: str) -> None:
    assert len(list(orders_from_sets(ast.parse(code)))) == 1


@pytest.mark.parametrize(
    "code",
    [
        "for x in sorted({1, 2}): pass",
        "for x in {1: 2}: pass",
        "1 in {1, 2}",
        "a = {1}\nlen(a)",
        "any(x in a for x in items)",
        "for x in items: pass",
        "a = []\na.pop()",
    ],
)
def test_a_set_whose_order_does_not_matter_is_let_be(code: str) -> None:
    assert list(orders_from_sets(ast.parse(code))) == []


def orders_from_sets(tree: ast.Module) -> Iterator[ast.expr]:
    """Expressions that walk through a set: a loop, or a call or unpacking that shows its order."""
    names = set_names(tree)
    for node in ast.walk(tree):
        walked: list[ast.expr] = []
        if isinstance(node, ast.For | ast.comprehension):
            walked = [node.iter]
        elif isinstance(node, ast.Starred):
            walked = [node.value]
        elif isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else ast.unparse(node.func)
            if called in ("list", "tuple", "enumerate", "zip", "map", "filter", "iter", "sum", "min", "max", "join"):
                walked = node.args
            elif called == "pop" and isinstance(node.func, ast.Attribute) and not node.args:
                walked = [node.func.value]
        yield from (expression for expression in walked if is_set(expression, names))


def is_set(node: ast.expr, names: frozenset[str]) -> bool:
    """Whether an expression is a set as far as its text tells."""
    match node:
        case ast.Set() | ast.SetComp():
            return True
        case ast.Call(func=ast.Name(id="set" | "frozenset")):
            return True
        case ast.BinOp(op=ast.Sub() | ast.BitOr() | ast.BitAnd() | ast.BitXor()):
            sides = (node.left, node.right)
            return any(is_set(side, names) or ast.unparse(side).endswith((".keys()", ".items()")) for side in sides)
        case ast.Name() | ast.Attribute():
            return ast.unparse(node).removeprefix("self.") in names
    return False


def set_names(tree: ast.Module) -> frozenset[str]:
    """Names that the file annotates as sets or gives a set."""
    found: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.arg | ast.AnnAssign) and node.annotation:
            if re.match(r"(set|frozenset)\b", ast.unparse(node.annotation)):
                found.append(node.arg if isinstance(node, ast.arg) else ast.unparse(node.target))
        elif isinstance(node, ast.Assign) and is_set(node.value, frozenset()):
            found += [ast.unparse(target) for target in node.targets]
    return frozenset(name.removeprefix("self.") for name in found)


def test_nothing_takes_its_order_from_a_set() -> None:
    wrong = [
        f"{module.at(node.lineno)}: {ast.unparse(node)}"
        for module in modules().values()
        for node in orders_from_sets(module.tree)
    ]
    assert wrong == []
