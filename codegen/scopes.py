"""Which names a scope binds: functions, lambdas, comprehensions."""

from __future__ import annotations

import ast

Callable_ = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def parameters(node: Callable_) -> list[ast.arg]:
    """All parameters, in the order of the text."""
    a = node.args
    return [*a.posonlyargs, *a.args, *([a.vararg] if a.vararg else []), *a.kwonlyargs, *([a.kwarg] if a.kwarg else [])]


def bound(node: ast.AST) -> set[str]:
    """The names that belong to the scope of a function, lambda or comprehension."""
    if isinstance(node, COMPREHENSIONS):
        return {n.id for g in node.generators for n in ast.walk(g.target) if isinstance(n, ast.Name)}
    found: set[str] = set()
    outer: set[str] = set()
    if isinstance(node, ast.Lambda):
        _collect(node.body, found, outer)
        return found | {p.arg for p in parameters(node)}
    if isinstance(node, FUNCTIONS):
        found |= {p.arg for p in parameters(node)}
        for statement in node.body:
            _collect(statement, found, outer)
    return found - outer


def _collect(node: ast.AST, found: set[str], outer: set[str]) -> None:
    if isinstance(node, (*FUNCTIONS, ast.ClassDef)):
        found.add(node.name)
        return
    if isinstance(node, ast.Lambda):
        return
    if isinstance(node, COMPREHENSIONS):
        found.update(n.target.id for n in ast.walk(node) if isinstance(n, ast.NamedExpr))
        return
    if isinstance(node, (ast.Global, ast.Nonlocal)):
        outer.update(node.names)
    elif isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
        found.add(node.id)
    elif isinstance(node, (ast.Import, ast.ImportFrom)):
        found.update((a.asname or a.name).split(".")[0] for a in node.names)
    elif isinstance(node, (ast.ExceptHandler, ast.MatchAs, ast.MatchStar)) and node.name:
        found.add(node.name)
    elif isinstance(node, ast.MatchMapping) and node.rest:
        found.add(node.rest)
    for child in ast.iter_child_nodes(node):
        _collect(child, found, outer)


def stores(node: ast.AST) -> dict[str, int]:
    """How often each name is bound inside a function, nested scopes included."""
    count: dict[str, int] = {}
    for n in ast.walk(node):
        names: list[str] = []
        if isinstance(n, ast.Name) and not isinstance(n.ctx, ast.Load):
            names = [n.id]
        elif isinstance(n, (ast.MatchAs, ast.MatchStar, ast.ExceptHandler)):
            names = [n.name] if n.name else []
        elif isinstance(n, (*FUNCTIONS, ast.ClassDef)):
            names = [n.name] if n is not node else []
        elif isinstance(n, (ast.Import, ast.ImportFrom)):
            names = [(a.asname or a.name).split(".")[0] for a in n.names]
        for name in names:
            count[name] = count.get(name, 0) + 1
    return count


_OPERATORS = (ast.expr_context, ast.operator, ast.unaryop, ast.boolop, ast.cmpop)
_PLAIN = (
    *(ast.Name, ast.Attribute, ast.Constant, ast.UnaryOp, ast.BinOp, ast.BoolOp, ast.Compare, ast.IfExp, ast.Tuple),
    *(ast.List, ast.Dict, ast.Set, ast.Subscript, ast.Slice, ast.JoinedStr, ast.FormattedValue, ast.comprehension),
    *(ast.Starred, *COMPREHENSIONS),
)
_PURE_FUNCTIONS = frozenset(
    [
        "len",
        "int",
        "float",
        "bool",
        "str",
        "min",
        "max",
        "abs",
        "isinstance",
        "getattr",
        "hasattr",
        "tuple",
        "list",
        "dict",
        "set",
        "sorted",
        "round",
        "range",
        "callable",
        "issubclass",
        "sum",
        "any",
        "all",
        "type",
        "repr",
        "zip",
        "enumerate",
    ]
)
_PURE_METHODS = frozenset(["items", "keys", "values", "get", "lower", "upper", "startswith", "endswith", "format"])


def is_plain(node: ast.AST) -> bool:
    """Whether an expression has no effect and can be left out: names, attributes, literals, arithmetic, pure builtins."""
    if isinstance(node, (ast.Lambda, *_OPERATORS)):
        return True
    if isinstance(node, ast.Call):
        parts: list[ast.expr] = [*node.args, *(k.value for k in node.keywords)]
        if isinstance(node.func, ast.Attribute):
            parts.append(node.func.value)
            pure = node.func.attr in _PURE_METHODS
        else:
            pure = isinstance(node.func, ast.Name) and node.func.id in _PURE_FUNCTIONS
        return pure and all(map(is_plain, parts))
    return isinstance(node, _PLAIN) and all(map(is_plain, ast.iter_child_nodes(node)))
