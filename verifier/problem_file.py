"""Static reading of a problem file: what it defines, what a workload may override, what it declares.

Nothing is executed and PyTorch is not imported: a broken file is found by its syntax tree, with a line. The
tree walk is for honest mistakes of the user, not a defence: the file is trusted code.
"""

from __future__ import annotations

import ast
import difflib
import math
import operator
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar, cast

from verifier.errors import ProblemError
from verifier.problem import BUILT_IN, Constant, LibraryPolicy, Precision, Role, Workload

DECLARATIONS = ("WORKLOADS", "PRECISION", "BASELINES", "BASELINE", "PROMPT", "LIBRARY", "TITLE", "FLOPS")
WORKLOAD_KEYS = ("name", "roles", "constants", "weight")

Name = TypeVar("Name", bound=StrEnum)

MAX_POWER = 64

_ARITHMETIC: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Pow: lambda base, power: base**power if abs(power) <= MAX_POWER else math.nan,
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Div: operator.truediv,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}


@dataclass(frozen=True, slots=True)
class ProblemFile:
    """One parsed file. Methods raise ProblemError with `file` and the line at fault."""

    file: str
    tree: ast.Module

    @classmethod
    def parse(cls, source: str, file: str) -> ProblemFile:
        """The checked file: `Model` with `forward`, `get_inputs` and `get_init_inputs` are there."""
        try:
            parsed = cls(file, ast.parse(source, filename=file))
        except SyntaxError as error:
            raise ProblemError(f"syntax error: {error.msg}", file=file, line=error.lineno) from None
        except ValueError as error:  # a null byte
            raise ProblemError(f"not Python source: {error}", file=file) from None
        parsed._check_model()
        parsed._check_function("get_inputs", "a list with the arguments of `forward`")
        parsed._check_function("get_init_inputs", "a list with the arguments of `Model`, or an empty one")
        return parsed

    def constants(self) -> dict[str, Constant]:
        """Module-level names bound to a literal or to arithmetic over literals: what a workload may override.

        The last binding counts. Names derived from other names are left out: they follow their source.
        """
        found: dict[str, Constant] = {}
        for statement in self.tree.body:
            for target, value in bindings(statement):
                try:
                    found[target] = constant_value(value)
                except ValueError:
                    found.pop(target, None)
        return {name: value for name, value in found.items() if name not in DECLARATIONS}

    def title(self) -> str:
        """`TITLE`, else the first line of the docstring of the file or of `Model`, else empty."""
        declared = self._declared("TITLE")
        if declared is not None:
            return self._text("TITLE", declared)
        for node in (self.tree, self._classes()["Model"]):
            text = ast.get_docstring(node) or ""
            if text:
                return text.splitlines()[0]
        return ""

    def prompt(self) -> str | None:
        node = self._declared("PROMPT")
        return None if node is None else self._text("PROMPT", node)

    def baseline(self) -> str:
        node = self._declared("BASELINE")
        return "eager" if node is None else self._choice("BASELINE", node, (*BUILT_IN, *self.baselines()[0]))

    def baselines(self) -> tuple[dict[str, str], dict[str, str]]:
        """`BASELINES`: names with the class of each, and names with the reason why there is none."""
        node = self._declared("BASELINES")
        if node is None:
            return {}, {}
        if not isinstance(node, ast.Dict):
            raise self._error("BASELINES is a dictionary from a name to a class of the file, or to a reason", node)
        classes: dict[str, str] = {}
        excuses: dict[str, str] = {}
        for key, value in zip(node.keys, node.values, strict=True):
            name = self._text("a name in BASELINES", key or node)
            if name in BUILT_IN or name in classes or name in excuses:
                raise self._error(f"BASELINES: {name!r} is built in or named twice", value)
            if isinstance(value, ast.Name):
                classes[name] = self._baseline_class(name, value)
            else:
                excuses[name] = self._text(f"BASELINES[{name!r}]", value)
        return classes, excuses

    def _baseline_class(self, name: str, node: ast.Name) -> str:
        known = self._classes()
        if node.id not in known:
            raise self._error(f"BASELINES: {name!r} is {node.id}, which is no class{close(node.id, known)}", node)
        return node.id

    def library(self) -> LibraryPolicy:
        node = self._declared("LIBRARY")
        return LibraryPolicy.ASSIST if node is None else self._member("LIBRARY", node, LibraryPolicy)

    def precision(self) -> Precision:
        """`PRECISION`, else the least precise dtype in `get_inputs`, else TF32: what an fp32 file means."""
        node = self._declared("PRECISION")
        if node is not None:
            return self._member("PRECISION", node, Precision)
        inputs = self._functions()["get_inputs"]
        named = {n.attr for n in ast.walk(inputs) if isinstance(n, ast.Attribute)}
        if "bfloat16" in named:
            return Precision.BF16
        return Precision.FP16 if named & {"float16", "half"} else Precision.TF32

    def workloads(self) -> tuple[Workload, ...]:
        """`WORKLOADS`, or one workload `default` with the file's own constants, to be checked and timed."""
        node = self._declared("WORKLOADS")
        if node is None:
            return (Workload(name="default", roles=frozenset({Role.CHECK, Role.TIMED})),)
        if not isinstance(node, ast.List | ast.Tuple) or not node.elts:
            raise self._error("WORKLOADS is a list of dictionaries with at least one entry", node)
        constants = self.constants()
        loaded: dict[str, Workload] = {}
        for entry in node.elts:
            workload = self._workload(entry, constants)
            if workload.name in loaded:
                raise self._error(f"workload name {workload.name!r} is used twice", entry)
            loaded[workload.name] = workload
        return tuple(loaded.values())

    def check_flops(self) -> None:
        """FLOPS is arithmetic over the file's constants, so that each workload has its own value."""
        node = self._declared("FLOPS")
        text = isinstance(node, ast.Constant) and not isinstance(node.value, int | float)
        if node is not None and (text or isinstance(node, ast.List | ast.Tuple | ast.Dict | ast.Set)):
            raise self._error("FLOPS is a number, or arithmetic over the constants of the file", node)

    # one entry of WORKLOADS

    def _workload(self, node: ast.expr, constants: dict[str, Constant]) -> Workload:
        entry = self._literal("a workload", node)
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str) or not entry["name"]:
            raise self._error("a workload is a dictionary with a `name` (text)", node)
        where = f"workload {entry['name']!r}"
        for key in entry:
            if key not in WORKLOAD_KEYS:
                raise self._error(f"{where}: unknown key {key!r}{close(key, WORKLOAD_KEYS)}", node)
        weight = entry.get("weight", 1.0)
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
            raise self._error(f"{where}: `weight` is a finite number above 0", node)
        overrides = self._overrides(where, node, entry.get("constants", {}), constants)
        roles = self._roles(where, node, entry.get("roles"))
        return Workload(name=entry["name"], roles=roles, constants=overrides, weight=weight)

    def _roles(self, where: str, node: ast.expr, roles: object) -> frozenset[Role]:
        if not isinstance(roles, list | tuple | set) or not roles:
            raise self._error(f"{where}: `roles` is a list out of {', '.join(Role)}", node)
        for role in roles:
            if role not in list(Role):
                raise self._error(f"{where}: unknown role {role!r}{close(role, Role)}", node)
        return frozenset(Role(role) for role in roles)

    def _overrides(
        self, where: str, node: ast.expr, overrides: object, constants: dict[str, Constant]
    ) -> dict[str, Constant]:
        if not isinstance(overrides, dict):
            raise self._error(f"{where}: `constants` is a dictionary from name to value", node)
        checked: dict[str, Constant] = {}
        for name, value in overrides.items():
            if name not in constants:
                rule = "only a module-level name with a literal value can be overridden"
                raise self._error(f"{where}: unknown constant {name!r}; {rule}{close(name, constants)}", node)
            if not _same_kind(constants[name], value):
                old = f"{name!r} is {constants[name]!r} in the file"
                raise self._error(f"{where}: {old} and cannot be overridden by {value!r}", node)
            checked[name] = tuple(value) if isinstance(value, list) else value
        return checked

    # what must be there

    def _classes(self) -> dict[str, ast.ClassDef]:
        return {n.name: n for n in self.tree.body if isinstance(n, ast.ClassDef)}

    def _functions(self) -> dict[str, ast.FunctionDef]:
        return {n.name: n for n in self.tree.body if isinstance(n, ast.FunctionDef)}

    def _check_model(self) -> None:
        classes = self._classes()
        if "Model" not in classes:
            hint = " (there is a `ModelNew`: that is the name of an answer)" if "ModelNew" in classes else ""
            raise ProblemError(f"there is no class `Model`{hint}", file=self.file)
        if not _may_have_method(classes["Model"], "forward", classes):
            raise self._error("class `Model` has no method `forward`", classes["Model"])

    def _check_function(self, name: str, returns: str) -> None:
        function = self._functions().get(name)
        if function is None:
            raise ProblemError(f"there is no function `{name}`; it returns {returns}", file=self.file)
        given = function.args
        required = len(given.posonlyargs) + len(given.args) - len(given.defaults)
        if required or any(default is None for default in given.kw_defaults):
            raise self._error(f"`{name}` is called without arguments but asks for some", function)

    # declarations

    def _declared(self, name: str) -> ast.expr | None:
        found = [v for s in self.tree.body for target, v in bindings(s) if target == name]
        if len(found) > 1:
            raise self._error(f"{name} is declared twice", found[1])
        return found[0] if found else None

    def _literal(self, what: str, node: ast.expr) -> Any:
        try:
            return ast.literal_eval(node)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            message = f"{what} must be a literal (numbers, text, lists, dictionaries)"
            raise self._error(message, node) from None

    def _text(self, name: str, node: ast.expr) -> str:
        value = self._literal(name, node)
        if not isinstance(value, str):
            raise self._error(f"{name} must be text, not {type(value).__name__}", node)
        return value

    def _choice(self, name: str, node: ast.expr, known: Iterable[str]) -> str:
        value = self._text(name, node)
        if value not in (names := list(known)):
            raise self._error(f"unknown {name} {value!r}{close(value, names)}", node)
        return value

    def _member(self, name: str, node: ast.expr, names: type[Name]) -> Name:
        return names(self._choice(name, node, [str(member) for member in names]))

    def _error(self, message: str, node: ast.stmt | ast.expr) -> ProblemError:
        return ProblemError(message, file=self.file, line=node.lineno)


def bindings(statement: ast.stmt) -> Iterator[tuple[str, ast.expr]]:
    """Names that an assignment binds, each with its own value: `a = b = 1` gives two, `a, b = 1, 2` too."""
    if isinstance(statement, ast.AnnAssign) and statement.value is not None:
        yield from _unpack(statement.target, statement.value)
    elif isinstance(statement, ast.Assign):
        for target in statement.targets:
            yield from _unpack(target, statement.value)


def constant_value(node: ast.expr) -> Constant:
    """Value of a literal or of arithmetic over literals. Raises ValueError for anything else."""
    if isinstance(node, ast.Constant) and (node.value is None or isinstance(node.value, int | float | str)):
        return cast(Constant, node.value)
    if isinstance(node, ast.Tuple | ast.List):
        return tuple(_number(constant_value(item)) for item in node.elts)
    if isinstance(node, ast.BinOp | ast.UnaryOp) and type(node.op) in _ARITHMETIC:
        operands = [node.left, node.right] if isinstance(node, ast.BinOp) else [node.operand]
        try:
            return _number(_ARITHMETIC[type(node.op)](*(_number(constant_value(part)) for part in operands)))
        except ArithmeticError as error:
            raise ValueError(str(error)) from None
    raise ValueError(f"{type(node).__name__} is not a literal")


def close(name: object, known: Iterable[str]) -> str:
    """`; did you mean a, b?`, else `; known: a, b, c`: the tail of a message about an unknown name."""
    names = [str(item) for item in known]
    near = difflib.get_close_matches(str(name), names)
    if near:
        return f"; did you mean {', '.join(near)}?"
    return f"; known: {', '.join(names)}" if names else "; there are none"


def _unpack(target: ast.expr, value: ast.expr) -> Iterator[tuple[str, ast.expr]]:
    if isinstance(target, ast.Name):
        yield target.id, value
    elif isinstance(target, ast.Tuple | ast.List):
        parts = value.elts if isinstance(value, ast.Tuple | ast.List) else []
        starred = any(isinstance(part, ast.Starred) for part in [*parts, *target.elts])
        if starred or len(parts) != len(target.elts):  # the values are not known one by one
            parts = [ast.copy_location(ast.Name("unknown"), value) for _ in target.elts]
        for part, part_value in zip(target.elts, parts, strict=True):
            yield from _unpack(part, part_value)


def _number(value: object) -> int | float:
    if not isinstance(value, int | float):
        raise ValueError(f"{value!r} is not a number")
    return value


def _same_kind(old: Constant, new: object) -> bool:
    """Number for number, text for text, tuple for tuple; None may become anything and back."""
    if isinstance(new, tuple | list):
        numbers = all(isinstance(item, int | float) for item in new)
        return numbers and (old is None or isinstance(old, tuple))
    if not (new is None or isinstance(new, int | float | str)):
        return False
    if old is None or new is None:
        return True
    if isinstance(old, bool) or isinstance(new, bool):
        return isinstance(old, bool) and isinstance(new, bool)
    return isinstance(new, int | float) if isinstance(old, int | float) else type(new) is type(old)


def _may_have_method(node: ast.ClassDef, name: str, classes: dict[str, ast.ClassDef]) -> bool:
    """Whether the class or a base defines `name`. An imported base counts, except `nn.Module`."""
    todo, seen = [node], {node.name}
    while todo:
        current = todo.pop()
        if any(name in _bound_names(statement) for statement in current.body):
            return True
        for base in current.bases:
            label = ast.unparse(base)
            if label in classes and label not in seen:
                seen.add(label)
                todo.append(classes[label])
            elif label not in classes and label.rpartition(".")[2] not in ("Module", "object"):
                return True
    return False


def _bound_names(statement: ast.stmt) -> set[str]:
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
        return {statement.name}
    return {target for target, _ in bindings(statement)}
