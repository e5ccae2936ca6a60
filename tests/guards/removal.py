"""Removes a guard from its function. It compares syntax trees, so a reformat hides no guard."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

# What a field of a syntax tree holds: nodes, but also names and numbers.
Nodes = list[Any]


@dataclass(frozen=True, slots=True)
class Code:
    """An expression, or consecutive statements, and the code to put there instead."""

    text: str
    instead: str

    def changed(self, nodes: Nodes) -> Iterator[Nodes]:
        """Yield the nodes once for each match among them, with that match replaced."""
        return _replaced(nodes, _parsed(self.text), _parsed(self.instead))


@dataclass(frozen=True, slots=True)
class Arguments:
    """Consecutive keyword arguments of a call, and the ones to pass instead."""

    text: str
    instead: str

    def changed(self, nodes: Nodes) -> Iterator[Nodes]:
        """Yield the nodes once for each match among them, with that match replaced."""
        return _replaced(nodes, _keywords(self.text), _keywords(self.instead))


@dataclass(frozen=True, slots=True)
class Sql:
    """A fragment of a string, whatever its white space, and the text to put there instead.

    An f-string's placeholders are part of the text. Write them as `ast.unparse` does: `{on_hold('id')}`.
    """

    text: str
    instead: str

    def changed(self, nodes: Nodes) -> Iterator[Nodes]:
        """Yield the nodes once for each match among them, with that match replaced."""
        fragment = re.compile(r"\s+".join(map(re.escape, self.text.split())))
        for index, node in enumerate(nodes):
            text = _shown(node)
            for match in fragment.finditer(text):
                rest = text[: match.start()] + self.instead + text[match.end() :]
                yield [*nodes[:index], _string(rest, node), *nodes[index + 1 :]]


Removal = Code | Arguments | Sql


def removed(source: str, function: str, removal: Removal) -> str:
    """Return a module's source without a guard, which the function or constant must contain exactly once.

    The function is named as in `Class.method`. Raises ValueError.
    """
    module = ast.parse(source)
    edits = _edits(_named(module, function), removal)
    if len(edits) != 1:
        raise ValueError(
            f"{function} must contain this exactly once, and contains it {len(edits)} times: {removal.text}"
        )
    edits[0]()
    return ast.unparse(ast.fix_missing_locations(module))


def _named(module: ast.Module, name: str) -> ast.AST:
    """Return the definition of a function, a method or a constant."""
    scope: ast.AST = module
    for part in name.split("."):
        definitions = [node for node in getattr(scope, "body", []) if _name(node) == part]
        if len(definitions) != 1:
            raise ValueError(f"{name} must be defined exactly once, and {part} is defined {len(definitions)} times")
        scope = definitions[0]
    return scope


def _name(node: ast.AST) -> str | None:
    """Return the name that a statement defines."""
    match node:
        case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
            return name
        case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
            return name
    return None


def _edits(scope: ast.AST, removal: Removal) -> list[partial[None]]:
    """Return one edit for each match. Calling it changes the tree."""
    edits = []
    for node in ast.walk(scope):
        if isinstance(node, ast.JoinedStr):
            continue  # an f-string is searched as a whole, where it is used
        for field, value in ast.iter_fields(node):
            if isinstance(value, list):
                edits += [partial(setattr, node, field, nodes) for nodes in removal.changed(value)]
            else:
                edits += [partial(setattr, node, field, one) for (one,) in removal.changed([value])]
    return edits


def _replaced(nodes: Nodes, old: Nodes, new: Nodes) -> Iterator[Nodes]:
    """Yield the nodes once for each run of them that equals `old`, replaced by `new`."""
    for start in range(len(nodes) - len(old) + 1):
        end = start + len(old)
        if type(nodes[start]) is type(old[0]) and _dumped(nodes[start:end]) == _dumped(old):
            yield [*nodes[:start], *new, *nodes[end:]]


def _dumped(nodes: Nodes) -> list[str]:
    return [ast.dump(node) if isinstance(node, ast.AST) else repr(node) for node in nodes]


@cache
def _parsed(code: str) -> Nodes:
    """Return an expression as itself, and statements as a list of them. They are shared: nobody may change them."""
    match ast.parse(code).body:
        case [ast.Expr(value=expression)]:
            return [expression]
        case statements:
            return [*statements]


@cache
def _keywords(arguments: str) -> Nodes:
    """Return a call's keyword arguments, likewise."""
    call = ast.parse(f"call({arguments})", mode="eval").body
    return [*call.keywords] if isinstance(call, ast.Call) else []


def _shown(node: Any) -> str:
    """Return the text of a string with its placeholders; an empty text for any other node."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.FormattedValue(value=value):
            return f"{{{ast.unparse(value)}}}"
        case ast.JoinedStr(values=parts):
            return "".join(map(_shown, parts))
    return ""


def _string(text: str, original: Any) -> ast.expr:
    """Return a string with this text, and with the placeholders of the original."""
    if not isinstance(original, ast.JoinedStr):
        return ast.Constant(text)
    placeholders = {_shown(part): part for part in original.values if isinstance(part, ast.FormattedValue)}
    parts = re.split(f"({'|'.join(map(re.escape, placeholders))})", text)
    return ast.JoinedStr([placeholders.get(part) or ast.Constant(part) for part in parts])
