"""Wording as tests over the syntax trees: names of our vocabulary, docstrings, and no parameter that says nothing."""

import ast
import re
from collections.abc import Iterator

from tests.test_architecture import Function, Module, engine, functions, modules, parameters, within

NO_NOUN = ("utils", "util", "common", "helpers", "helper", "types", "misc")

NOT_OUR_WORDS = {
    "iteration": "step",
    "iterations": "steps",
    "job": "request",
    "query": "request",
    "task": "request",
    "req": "request",
    "reqs": "requests",
    "seq": "sequence",
    "replica": "instance",
    "replicas": "instances",
    "page": "KV block",
    "pages": "KV blocks",
    "tbt": "ITL",
    "boot": "cold start",
    "evict": "preempt",
    "eviction": "preemption",
    "resize": "reshape",
    "trial": "run",
    "manager": "the noun itself",
    "handler": "the noun itself",
    "impl": "the noun itself",
    "info": "the noun itself",
}
"""Words inside names in serving/, and what they are called here."""
OTHER_MEANINGS = {"serving.live": ("page", "pages", "query")}
"""Words that are the right ones in a package: memory comes in pages there, and attention has queries."""
NOT_OUR_NAMES = {
    r"latency|latencies": "ttft, tpot, itl or e2e",
    r"response_time": "e2e",
    r"n_\w+|\w+_(count|cnt)": "num_*",
    r"(do|process)_\w+": "a verb that says what",
    r"\w+_(ms|millis|msec|usec|us)": "seconds, as every time inside",
    r"Base[A-Z]\w*|\w+Base": "a Protocol named by its noun",
}


def test_every_parameter_is_used_or_deleted() -> None:
    wrong = []
    for module in modules().values():
        for function in functions(module):
            if is_stub(function):
                continue
            used = [
                node.id for statement in function.body for node in ast.walk(statement) if isinstance(node, ast.Name)
            ]
            wrong += [
                f"{module.at(function.lineno)}: {function.name}({parameter.arg})"
                for parameter in parameters(function)
                if parameter.arg not in used and not parameter.arg.startswith("_")
            ]
    assert wrong == []


def is_stub(function: Function) -> bool:
    """A method of a Protocol, or an overload: a docstring and ``...``."""
    return all(isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) for node in function.body)


def test_names_in_serving_are_of_our_vocabulary() -> None:
    wrong = []
    for module in engine():
        for line, name in defined_names(module):
            words = [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]
            meant = [word for package, fine in OTHER_MEANINGS.items() if within(module.name, package) for word in fine]
            ours = [NOT_OUR_WORDS[word] for word in words if word in NOT_OUR_WORDS and word not in meant]
            ours += [better for pattern, better in NOT_OUR_NAMES.items() if re.fullmatch(pattern, name)]
            wrong += [f"{module.at(line)}: {name}; here it is {better}" for better in ours]
    assert wrong == []


def defined_names(module: Module) -> Iterator[tuple[int, str]]:
    """Names that the module gives: to itself, classes, functions, parameters, variables, fields."""
    yield 1, module.name.rpartition(".")[2]
    for node in ast.walk(module.tree):
        match node:
            case ast.ClassDef() | ast.FunctionDef():
                yield node.lineno, node.name
            case ast.arg():
                yield node.lineno, node.arg
            case ast.Name(ctx=ast.Store()):
                yield node.lineno, node.id
            case ast.Attribute(ctx=ast.Store()):
                yield node.lineno, node.attr


def test_no_module_is_named_for_want_of_a_noun() -> None:
    assert [name for name in modules() if name.rpartition(".")[2] in NO_NOUN] == []


def test_every_module_and_every_public_class_and_function_has_a_docstring() -> None:
    wrong = [module.at(1) for module in modules().values() if ast.get_docstring(module.tree) is None]
    for module in modules().values():
        wrong += [
            f"{module.at(node.lineno)}: {node.name}" for node in public(module.tree) if ast.get_docstring(node) is None
        ]
    assert wrong == []


def public(owner: ast.Module | ast.ClassDef) -> Iterator[Function | ast.ClassDef]:
    """Public classes and functions, and those inside public classes."""
    for node in owner.body:
        is_setter = any(ast.unparse(decorator).endswith(".setter") for decorator in getattr(node, "decorator_list", ()))
        if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_") and not is_setter:
            yield node
            if isinstance(node, ast.ClassDef):
                yield from public(node)
