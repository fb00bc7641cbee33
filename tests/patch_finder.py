"""Finds what a file's code replaces in the modules that it imports: read from the syntax tree, whatever name it was imported under."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterator

SETTINGS = ("os.environ",)
"""Made to be assigned to."""

SETTERS = tuple(f"builtins.{name}" for name in ("setattr", "delattr")) + tuple(
    f"builtins.{kind}.{method}" for kind in ("object", "type") for method in ("__setattr__", "__delattr__")
)
OWN = ("self", "cls")
MOCKS = ("unittest.mock", "mock", "pytest.MonkeyPatch")
DICT_CHANGES = ("update", "setdefault", "pop", "popitem", "clear", "__setitem__", "__delitem__", "__ior__")
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


class Scope:
    """The names of a module, a class body or a function, and what each may stand for: dotted names, none for what was not imported."""

    def __init__(self, node: ast.AST, parent: Scope | None) -> None:
        self.parent = parent
        self.names: dict[str, set[str]] = {}
        self.nodes = list(_inside(node))
        if isinstance(node, FUNCTIONS):
            for arg in ast.walk(node.args):
                if isinstance(arg, ast.arg):
                    self.names[arg.arg] = set()
        outer = {name for n in self.nodes if isinstance(n, ast.Global | ast.Nonlocal) for name in n.names}
        # twice, so that a name may be used above the line that binds it
        for _ in range(2):
            for name, dotted in self._bindings():
                if name not in outer:
                    self.names.setdefault(name, set()).update(dotted)

    def _bindings(self) -> Iterator[tuple[str, set[str]]]:
        for node in self.nodes:
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield (alias.asname, {alias.name}) if alias.asname else (alias.name.split(".")[0], {alias.name.split(".")[0]})
            elif isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    yield alias.asname or alias.name, {f"{'.' * node.level}{node.module or ''}.{alias.name}"}
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                yield node.name, set()
            elif isinstance(node, ast.Assign):
                for target in node.targets:
                    yield from self._bound(target, node.value)
            elif isinstance(node, ast.AnnAssign | ast.NamedExpr):
                yield from self._bound(node.target, node.value)
            elif isinstance(node, ast.For | ast.AsyncFor | ast.comprehension):
                for value in node.iter.elts if isinstance(node.iter, ast.Tuple | ast.List | ast.Set) else [None]:
                    yield from self._bound(node.target, value)
            elif isinstance(node, ast.withitem) and node.optional_vars:
                yield from self._bound(node.optional_vars, None)

    def _bound(self, target: ast.expr, value: ast.expr | None) -> Iterator[tuple[str, set[str]]]:
        if isinstance(target, ast.Name):
            yield target.id, self.resolve(value) if value else set()
        elif isinstance(target, ast.Tuple | ast.List):
            values: list[ast.expr | None] = [None] * len(target.elts)
            if isinstance(value, ast.Tuple | ast.List) and len(value.elts) == len(target.elts):
                values = [*value.elts]
            for part, of_part in zip(target.elts, values, strict=True):
                yield from self._bound(part, of_part)

    def look_up(self, name: str) -> set[str]:
        if name in self.names:
            return self.names[name]
        if self.parent:
            return self.parent.look_up(name)
        return {f"builtins.{name}"} if hasattr(builtins, name) else set()

    def resolve(self, node: ast.AST) -> set[str]:
        """What an expression may stand for, through attributes, `getattr`, `import_module` and `sys.modules`."""
        if isinstance(node, ast.Name):
            return self.look_up(node.id)
        if isinstance(node, ast.Attribute):
            return {f"{dotted}.{node.attr}" for dotted in self.resolve(node.value)}
        if isinstance(node, ast.IfExp):
            return self.resolve(node.body) | self.resolve(node.orelse)
        if isinstance(node, ast.BoolOp):
            return set().union(*map(self.resolve, node.values))
        if isinstance(node, ast.NamedExpr):
            return self.resolve(node.value)
        if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
            key = str(node.slice.value)
            return {
                key if dotted == "sys.modules" else dotted.removesuffix("__dict__") + key
                for dotted in self.resolve(node.value)
                if dotted == "sys.modules" or dotted.endswith(".__dict__")
            }
        if isinstance(node, ast.Call) and node.args:
            function, given = self.resolve(node.func), [str(a.value) for a in node.args if isinstance(a, ast.Constant)]
            if "builtins.getattr" in function:
                return {f"{dotted}.{given[0] if given else '?'}" for dotted in self.resolve(node.args[0])}
            if "builtins.vars" in function:
                return {f"{dotted}.__dict__" for dotted in self.resolve(node.args[0])}
            if function & {"importlib.import_module", "builtins.__import__", "sys.modules.get"} and given:
                return {given[0]}
        return set()


def _inside(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes of a scope, without those of the functions and classes in it."""
    for child in ast.iter_child_nodes(node):
        yield child
        if isinstance(child, FUNCTIONS):
            outside = [*getattr(child, "decorator_list", []), *child.args.defaults, *filter(None, child.args.kw_defaults)]
        elif isinstance(child, ast.ClassDef):
            outside = [*child.decorator_list, *child.bases, *child.keywords]
        else:
            outside = [child]
        for part in outside:
            if part is not child:
                yield part
            yield from _inside(part)


def _replaced(node: ast.AST, scope: Scope) -> Iterator[str]:
    """What one node replaces."""
    written = isinstance(getattr(node, "ctx", None), ast.Store | ast.Del)
    if isinstance(node, ast.Attribute) and written:
        yield from scope.resolve(node)
        own = isinstance(node.value, ast.Name) and node.value.id in OWN
        if not scope.resolve(node) and not own and node.attr.startswith("_") and not node.attr.endswith("__"):
            # whatever the object is: a private name is its own module's
            yield ast.unparse(node)
    elif isinstance(node, ast.Subscript) and written:
        yield from (f"{dotted}[{ast.unparse(node.slice)}]" for dotted in scope.resolve(node.value))
    elif isinstance(node, ast.Call):
        function = scope.resolve(node.func)
        yield from (name for name in function if below(name, MOCKS))
        if function & set(SETTERS) and node.args:
            name = node.args[1] if len(node.args) > 1 else None
            text = str(name.value) if isinstance(name, ast.Constant) else "?"
            own = isinstance(node.args[0], ast.Name) and node.args[0].id in OWN
            # of an object that a function was given, too: nobody sees what it is
            yield from (f"{dotted}.{text}" for dotted in scope.resolve(node.args[0]) or ([] if own else [ast.unparse(node.args[0])]))
        elif isinstance(node.func, ast.Attribute):
            if node.func.attr in DICT_CHANGES:
                yield from (d for d in scope.resolve(node.func.value) if d == "sys.modules" or d.endswith(".__dict__"))
            elif node.func.attr in ("setattr", "delattr", "setitem"):
                yield ast.unparse(node.func)


def patches(source: str) -> list[tuple[int, str]]:
    """(line, what) for everything that a file's code replaces in what it imports, whatever the name it has there, and of any other
    object but `self` for the private attributes that it sets and for what it sets by `setattr`."""
    found: list[tuple[int, str]] = []

    def visit(node: ast.AST, parent: Scope | None) -> None:
        scope = Scope(node, parent)
        for inner in scope.nodes:
            found.extend((getattr(inner, "lineno", 0), what) for what in _replaced(inner, scope) if not below(what, SETTINGS))
        # a method does not see the names of its class body
        outer = parent if isinstance(node, ast.ClassDef) else scope
        for inner in scope.nodes:
            if isinstance(inner, (*FUNCTIONS, ast.ClassDef)):
                visit(inner, outer)

    visit(ast.parse(source), None)
    return sorted(found)


def below(name: str, roots: tuple[str, ...]) -> bool:
    return any(name == root or name.startswith((f"{root}.", f"{root}[")) for root in roots)
