"""Simple faults made from a file's syntax tree, each one small edit of its text.

`KINDS` is the list of what is done. A fault compiles, changes the tree, and is made once. Never
touched: docstrings, annotations, imports, `__all__`, f-strings (their positions in the tree are
unreliable before Python 3.12), what a `raise` says, and plain strings that are neither a key, nor
compared with, nor a default value, so no message and no help text. Where something is replaced by
another of its sort, that is the one whose name is most alike: the slip that a reader makes too.
"""

import ast
import collections
import dataclasses
import difflib
import functools
import hashlib
import io
import itertools
import json
import pathlib
import random
import textwrap
import tokenize
import warnings
from collections.abc import Iterable, Iterator

Edit = tuple[int, int, str]  # where the old text starts and stops, and the new text
Function = ast.FunctionDef | ast.AsyncFunctionDef
INNER = (ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
SAYS = ("print", "say", "warn", "add_argument", "ArgumentParser")  # and DEFINE_...: for people
HELP = ("help", "description", "epilog", "metavar")
ASSURANCES = ("frozen", "strict", "stacklevel")  # a right program does the same without them

FLIPS: dict[type[ast.AST], tuple[str, ...]] = {
    ast.Lt: ("<=", ">"),
    ast.LtE: ("<", ">="),
    ast.Gt: (">=", "<"),
    ast.GtE: (">", "<="),
    ast.Eq: ("!=",),
    ast.NotEq: ("==",),
    ast.In: ("not in",),
    ast.NotIn: ("in",),
    ast.Is: ("is not",),
    ast.IsNot: ("is",),
}
EXACT = (ast.Eq, ast.NotEq, ast.In, ast.NotIn, ast.Is, ast.IsNot)  # whose flip is their negation
OPERATORS: dict[type[ast.AST], str] = {
    ast.Add: "-",
    ast.Sub: "+",
    ast.Mult: "/",
    ast.Div: "*",
    ast.BitAnd: "|",
    ast.BitOr: "&",
}
PAIRS = (
    ("min", "max"),
    ("any", "all"),
    ("floor", "ceil"),
    ("minimum", "maximum"),
    ("argmin", "argmax"),
)
OPPOSITES = dict(PAIRS) | {two: one for one, two in PAIRS}


@dataclasses.dataclass(frozen=True)
class Fault:
    """In `file`, the text from `start` to `stop` becomes `new`.

    shown: the lines that it touches as one, the edit marked [-old-]{+new+}.
    number: how many faults of the same function show the same before this one.
    """

    kind: str
    file: str
    function: str
    line: int
    column: int
    start: int
    stop: int
    new: str
    shown: str
    number: int

    @property
    def id(self) -> str:
        """Stays the same wherever the function moves, until the lines touched change."""
        what = "\n".join((self.file, self.function, self.shown, str(self.number)))
        return f"{self.kind}-{hashlib.sha256(what.encode()).hexdigest()[:10]}"

    @property
    def place(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"

    @property
    def diff(self) -> str:
        return textwrap.shorten(self.shown, 160, placeholder=" ...")

    def mutated(self, source: str) -> str:
        return source[: self.start] + self.new + source[self.stop :]

    def apply(self, root: pathlib.Path) -> None:
        path = root / self.file
        path.write_text(self.mutated(path.read_text()))


@dataclasses.dataclass(frozen=True)
class _Text:
    """A source with what is needed to find a node's text in it."""

    source: str
    tree: ast.Module
    starts: tuple[int, ...]  # of the lines
    tokens: tuple[tuple[int, int, str], ...]  # operators and names: start, stop, text
    called: frozenset[int]  # ids of the nodes that are called
    imported: frozenset[str]
    keys: tuple[str, ...]
    words: tuple[str, ...]  # strings that are compared with, or default values

    def span(self, node: ast.AST) -> tuple[int, int]:
        return (
            self._offset(node.lineno, node.col_offset),
            self._offset(node.end_lineno, node.end_col_offset),
        )

    def _offset(self, line: int, utf8: int) -> int:
        start = self.starts[line - 1]
        return start + len(self.source[start : start + utf8].encode()[:utf8].decode())

    def of(self, node: ast.AST) -> str:
        return self.source[slice(*self.span(node))]

    def between(self, start: int, stop: int) -> list[tuple[int, int, str]]:
        found = [token for token in self.tokens if start <= token[0] and token[1] <= stop]
        return [token for token in found if token[2] not in "()"]

    def operator(self, left: ast.AST, right: ast.AST) -> tuple[int, int]:
        """Where the operator between two operands is; they may have brackets around them."""
        found = self.between(self.span(left)[1], self.span(right)[0])
        return found[0][0], found[-1][1]


@dataclasses.dataclass(frozen=True)
class _Scope:
    """A function, or a class or the module outside of functions."""

    name: str
    names: dict[str, int]  # local name: the line that it is first bound in
    bound: frozenset[str]  # those, and the names of its comprehensions and lambdas
    attributes: dict[tuple[str, bool], tuple[str, ...]]  # (object, whether called): used on it
    keys: dict[str, tuple[str, ...]]  # object: the strings it is indexed with


@dataclasses.dataclass(frozen=True)
class _Unit:
    """A simple statement, the head of a compound one or a decorator: what is compiled alone."""

    start: int
    stop: int
    more: str = ""  # what makes it whole

    def tree(self, source: str, start: int, stop: int, new: str) -> str | None:
        """What tells its edited tree from others; None if it does not compile without a warning."""
        edited = source[self.start : start] + new + source[stop : self.stop]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                tree = ast.parse(f"def _():\n {edited}{self.more}")
                compile(tree, "fault", "exec")
            except (SyntaxError, ValueError):
                return None
        return ast.dump(tree)


def _swapped_arguments(text: _Text, node: ast.AST, scope: _Scope) -> Iterator[Edit]:
    if not isinstance(node, ast.Call) or _says(node):
        return
    positional = [each for each in node.args if not isinstance(each, ast.Starred)]
    for group in (positional, [each.value for each in node.keywords if each.arg]):
        for one, two in itertools.pairwise(group):
            (start, end), (begin, stop) = text.span(one), text.span(two)
            yield start, stop, text.of(two) + text.source[end:begin] + text.of(one)


def _dropped_keyword(text: _Text, node: ast.AST, scope: _Scope) -> Iterator[Edit]:
    if not isinstance(node, ast.Call):
        return
    spans = sorted(text.span(each) for each in [*node.args, *node.keywords])
    for keyword in node.keywords:
        start, stop = text.span(keyword)
        before = [span for span in spans if span[0] < start]
        after = [span for span in spans if span[0] > start]
        if keyword.arg is None or keyword.arg in (*HELP, *ASSURANCES):
            continue
        if after:
            yield start, after[0][0], ""
        elif before:
            yield text.between(before[-1][1], start)[0][0], stop, ""  # with the comma before
        else:
            comma = text.between(stop, text.span(node)[1])
            yield start, comma[0][1] if comma else stop, ""


def _flipped_comparison(text: _Text, node: ast.AST, scope: _Scope) -> Iterator[Edit]:
    if isinstance(node, ast.Compare):
        operands = itertools.pairwise([node.left, *node.comparators])
        for flipped, (left, right) in zip(node.ops, operands, strict=True):
            for new in FLIPS[type(flipped)]:
                yield *text.operator(left, right), new


def _off_by_one(text: _Text, node: ast.AST, scope: _Scope) -> Iterator[Edit]:
    match node:
        case ast.Constant(value=int(number)) if type(number) is int:
            yield *text.span(node), str(number + 1)
            yield *text.span(node), str(number - 1)
        case ast.BinOp(op=ast.Add() | ast.Sub(), right=ast.Constant(value=1)):
            start, stop = text.operator(node.left, node.right)[0], text.span(node.right)[1]
            yield len(text.source[:start].rstrip()), stop, ""
    bounds = []
    match node:
        case ast.Slice():
            bounds = [node.lower, node.upper]
        case ast.Call(func=ast.Name(id="range")):
            bounds = node.args
    for bound in bounds:
        if bound is not None and not _is_number(bound):
            yield *text.span(bound), f"{text.of(bound)} + 1"
            yield *text.span(bound), f"{text.of(bound)} - 1"


def _turned_condition(text: _Text, node: ast.AST, scope: _Scope) -> Iterator[Edit]:
    tests = []
    match node:
        case ast.If() | ast.While() | ast.IfExp():
            tests = [node.test]
        case ast.comprehension():
            tests = node.ifs
        case ast.UnaryOp(op=ast.Not()):
            start, _ = text.span(node)
            yield start, start + len("not "), ""
        case ast.BoolOp():
            new = "or" if isinstance(node.op, ast.And) else "and"
            for left, right in itertools.pairwise(node.values):
                yield *text.operator(left, right), new
    for test in tests:
        match test:
            case ast.UnaryOp(op=ast.Not()):
                continue  # its `not` is dropped above
            case ast.Compare(ops=[operator]) if isinstance(operator, EXACT):
                continue  # it is flipped as a comparison
            case ast.Name() | ast.Attribute() | ast.Call() | ast.Subscript():
                yield *text.span(test), f"not {text.of(test)}"
            case _:
                yield *text.span(test), f"not ({text.of(test)})"


def _other_operator(text: _Text, node: ast.AST, scope: _Scope) -> Iterator[Edit]:
    match node:
        case ast.BinOp() if type(node.op) in OPERATORS:
            if not (_is_text(node.left) or _is_text(node.right)):  # text or a path: it cannot run
                yield *text.operator(node.left, node.right), OPERATORS[type(node.op)]
        case ast.AugAssign() if type(node.op) in OPERATORS and not _is_text(node.value):
            yield *text.operator(node.target, node.value), OPERATORS[type(node.op)] + "="
        case ast.Name(id=name, ctx=ast.Load()) if name in OPPOSITES:
            yield *text.span(node), OPPOSITES[name]
        case ast.Attribute(attr=name, ctx=ast.Load()) if name in OPPOSITES:
            stop = text.span(node)[1]
            yield stop - len(name), stop, OPPOSITES[name]


def _other_name(text: _Text, node: ast.AST, scope: _Scope) -> Iterator[Edit]:
    match node:
        case ast.Name(id=name, ctx=ast.Load()) if name in scope.bound:
            others = [n for n, line in scope.names.items() if line < node.lineno and n != name]
            if others and id(node) not in text.called:
                yield *text.span(node), _most_alike(name, others)
        case ast.Attribute(attr=name, ctx=ast.Load()) if _root(node) not in text.imported:
            used = scope.attributes.get((ast.dump(node.value), id(node) in text.called), ())
            if others := [other for other in used if other != name]:
                stop = text.span(node)[1]
                yield stop - len(name), stop, _most_alike(name, others)
        case ast.Subscript(slice=ast.Constant(value=str(key)), ctx=ast.Load()):
            if others := [o for o in scope.keys.get(ast.dump(node.value), ()) if o != key]:
                yield *text.span(node.slice), json.dumps(_most_alike(key, others))


def _deleted_statement(text: _Text, node: ast.AST, scope: _Scope) -> Iterator[Edit]:
    match node:
        case ast.Expr(value=ast.Call()) | ast.AugAssign() | ast.Raise():
            yield *text.span(node), "pass"


def _other_constant(text: _Text, node: ast.AST, scope: _Scope) -> Iterator[Edit]:
    match node:
        case ast.Constant(value=bool(value)):
            yield *text.span(node), str(not value)
        case ast.Constant(value=float(value)):
            yield *text.span(node), repr(2 * value or 1.0)
        case ast.arguments() | ast.AnnAssign():
            yield from _others(text, _defaults(node), text.words)


def _other_string(text: _Text, node: ast.AST, scope: _Scope) -> Iterator[Edit]:
    yield from _others(text, _keys(node), text.keys)
    yield from _others(text, _compared(node), text.words)


KINDS = {
    "swap": _swapped_arguments,
    "drop": _dropped_keyword,
    "compare": _flipped_comparison,
    "off-by-one": _off_by_one,
    "condition": _turned_condition,
    "operator": _other_operator,
    "name": _other_name,
    "delete": _deleted_statement,
    "constant": _other_constant,
    "string": _other_string,
}


def faults(source: str, file: str) -> list[Fault]:
    """All faults of a source, in its order."""
    text, made = _read(source), []
    seen: dict[_Unit, set[str | None]] = {}
    shown_before: collections.Counter[tuple[str, str]] = collections.Counter()
    for node, scope, unit in _walk(text, text.tree, _scope("", text.tree), _Unit(0, 0)):
        if unit not in seen:
            seen[unit] = {None, unit.tree(source, unit.start, unit.start, "")}
        for kind, edits in KINDS.items():
            for start, stop, new in edits(text, node, scope):
                tree = unit.tree(source, start, stop, new)
                if tree in seen[unit]:
                    continue
                seen[unit].add(tree)
                line = source.count("\n", 0, start) + 1
                begin, rest = text.starts[line - 1], source[stop:].partition("\n")[0]
                marked = f"{source[begin:start]}[-{source[start:stop]}-]{{+{new}+}}{rest}"
                shown = " ".join(marked.split())
                where = (scope.name, line, start - begin + 1, start, stop)
                number = shown_before[scope.name, shown]
                shown_before[scope.name, shown] += 1
                made.append(Fault(kind, file, *where, new, shown, number))
    return sorted(made, key=lambda fault: (fault.start, fault.stop, fault.kind))


def lines_of_code(source: str) -> int:
    """Lines on which a node of the tree begins."""
    return len({node.lineno for node in ast.walk(ast.parse(source)) if hasattr(node, "lineno")})


def sample(made: Iterable[Fault], lines: dict[str, int], count: int, seed: int) -> list[Fault]:
    """`count` faults: the files in proportion to their `lines`, the kinds as evenly as can be.

    A longer sample of the same seed begins with the shorter one.
    """
    left: dict[str, dict[str, list[Fault]]] = {file: {} for file in lines}
    for fault in made:
        left[fault.file].setdefault(fault.kind, []).append(fault)
    draw = random.Random(seed)
    for kinds in left.values():
        for each in kinds.values():
            draw.shuffle(each)
    taken: collections.Counter[str] = collections.Counter()  # by file, by kind, and by both
    chosen: list[Fault] = []
    while len(chosen) < count and any(left.values()):
        files = [file for file in left if left[file]]
        file = max(
            files, key=lambda f: (len(chosen) + 1) * lines[f] / sum(lines.values()) - taken[f]
        )
        kinds = sorted(left[file], key=lambda k: (taken[k], taken[f"{file} {k}"], draw.random()))
        chosen.append(left[file][kinds[0]].pop())
        taken.update((file, kinds[0], f"{file} {kinds[0]}"))
        left[file] = {kind: each for kind, each in left[file].items() if each}
    return chosen


# Reading a source


def _read(source: str) -> _Text:
    tree = ast.parse(source)
    nodes = list(ast.walk(tree))
    starts = tuple(itertools.accumulate((len(line) + 1 for line in source.split("\n")), initial=0))
    tokens = tuple(
        (starts[t.start[0] - 1] + t.start[1], starts[t.end[0] - 1] + t.end[1], t.string)
        for t in tokenize.generate_tokens(io.StringIO(source).readline)
        if t.type in (tokenize.OP, tokenize.NAME)
    )
    imports = [node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]
    aliases = [alias for node in imports for alias in node.names]
    strings = [_compared(node) + _defaults(node) for node in nodes]
    return _Text(
        source,
        tree,
        starts,
        tokens,
        called=frozenset(id(node.func) for node in nodes if isinstance(node, ast.Call)),
        imported=frozenset((a.asname or a.name).partition(".")[0] for a in aliases),
        keys=_once(each.value for node in nodes for each in _keys(node)),
        words=_once(each.value for each in itertools.chain.from_iterable(strings)),
    )


def _walk(
    text: _Text, node: ast.AST, scope: _Scope, unit: _Unit
) -> Iterator[tuple[ast.AST, _Scope, _Unit]]:
    """The nodes that may be touched, each with its scope and what must still compile."""
    if isinstance(node, Function | ast.ClassDef):
        scope = _scope(f"{scope.name}.{node.name}".lstrip("."), node)
    if isinstance(node, ast.stmt):
        unit = _unit(text, node)
    yield node, scope, unit
    decorators = getattr(node, "decorator_list", ())
    for child in _touchable(node):
        inner = _Unit(*text.span(child)) if child in decorators else unit
        yield from _walk(text, child, scope, inner)


def _unit(text: _Text, statement: ast.stmt) -> _Unit:
    start, stop = text.span(statement)
    if text.source.startswith("elif", start):
        start += len("el")
    match statement:
        case ast.Try():
            return _Unit(start, start)
        case ast.stmt(body=[first, *_]):
            before = [first, *getattr(first, "decorator_list", ())]
            head = text.source[start : min(text.span(node)[0] for node in before)]
            return _Unit(start, start + len(head.rstrip(" @\n")), "\n  pass")
    return _Unit(start, stop)


def _touchable(node: ast.AST) -> Iterable[ast.AST]:
    match node:
        case ast.Raise() | ast.JoinedStr() | ast.Import() | ast.ImportFrom() | ast.arg():
            return ()
        case ast.Assign(targets=[ast.Name(id="__all__")]):
            return ()
        case ast.If(test=ast.Compare(left=ast.Name(id="__name__"))):
            return node.body
        case ast.keyword() if node.arg in ASSURANCES:
            return ()
        case ast.ExceptHandler() | ast.match_case():
            return node.body
        case ast.AnnAssign():
            return [node.value] if node.value else ()
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            return [*node.decorator_list, node.args, *node.body]
    return ast.iter_child_nodes(node)


def _scope(name: str, node: ast.AST) -> _Scope:
    own = list(_own(node, closed=(ast.ClassDef,)))
    called = {id(each.func) for each in own if isinstance(each, ast.Call)}
    attributes, keys = collections.defaultdict(list), collections.defaultdict(list)
    for each in own:
        match each:
            case ast.Attribute():
                attributes[ast.dump(each.value), id(each) in called].append(each.attr)
            case ast.Subscript(slice=ast.Constant(value=str(key))):
                keys[ast.dump(each.value)].append(key)
    local = isinstance(node, Function)
    return _Scope(
        name,
        _first_lines(_own(node, closed=(*INNER, ast.ClassDef))) if local else {},
        frozenset(_first_lines(own)) if local else frozenset(),
        {what: _once(each) for what, each in attributes.items()},
        {what: _once(each) for what, each in keys.items()},
    )


def _first_lines(nodes: Iterable[ast.AST]) -> dict[str, int]:
    """The names that are bound, with the line that each is first bound in; 0 for parameters."""
    found = []
    for node in nodes:
        match node:
            case ast.arg():
                found.append((0, node.arg))
            case ast.Name(ctx=ast.Store()):
                found.append((node.lineno, node.id))
    last_first = sorted(found, reverse=True)
    return {name: line for line, name in last_first if name not in ("self", "cls", "_")}


def _own(node: ast.AST, closed: tuple[type[ast.AST], ...]) -> Iterator[ast.AST]:
    """The nodes inside, without those of functions inside and of the `closed` types."""
    for child in ast.iter_child_nodes(node):
        yield child
        if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, *closed)):
            yield from _own(child, closed)


# Roles of nodes


def _keys(node: ast.AST) -> list[ast.Constant]:
    """String constants that are keys here."""
    match node:
        case ast.Dict():
            return _strings(node.keys)
        case ast.Subscript():
            return _strings([node.slice])
        case ast.Call(func=ast.Attribute(attr="get" | "pop" | "setdefault"), args=[key, *_]):
            return _strings([key])
    return []


def _compared(node: ast.AST) -> list[ast.Constant]:
    """String constants that something is compared with here."""
    if not isinstance(node, ast.Compare):
        return []
    sides = [node.left, *node.comparators]
    lists = [side.elts for side in sides if isinstance(side, ast.Tuple | ast.List | ast.Set)]
    return _strings([*sides, *itertools.chain.from_iterable(lists)])


def _defaults(node: ast.AST) -> list[ast.Constant]:
    """String constants that are default values here."""
    match node:
        case ast.arguments():
            return _strings([*node.defaults, *node.kw_defaults])
        case ast.AnnAssign():
            return _strings([node.value])
    return []


def _strings(nodes: Iterable[ast.AST | None]) -> list[ast.Constant]:
    constants = [node for node in nodes if isinstance(node, ast.Constant)]
    return [node for node in constants if isinstance(node.value, str)]


def _others(text: _Text, nodes: list[ast.Constant], pool: tuple[str, ...]) -> Iterator[Edit]:
    for node in nodes:
        if others := [other for other in pool if other != node.value]:
            yield *text.span(node), json.dumps(_most_alike(node.value, others))


def _most_alike(word: str, others: Iterable[str]) -> str:
    return max(others, key=lambda other: _likeness(word, other))


@functools.cache
def _likeness(one: str, two: str) -> float:
    return difflib.SequenceMatcher(None, one, two).ratio()


def _once(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(values))


def _says(call: ast.Call) -> bool:
    name = getattr(call.func, "attr", None) or getattr(call.func, "id", "")
    return name in SAYS or name.startswith("DEFINE_")


def _is_number(node: ast.AST) -> bool:
    node = node.operand if isinstance(node, ast.UnaryOp) else node
    return isinstance(node, ast.Constant)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.JoinedStr) or bool(_strings([node]))


def _root(node: ast.AST) -> str:
    """The name that a chain of attributes starts with."""
    while isinstance(node, ast.Attribute | ast.Subscript | ast.Call):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else ""
