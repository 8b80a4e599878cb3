"""What a compiled program says of itself: kernels, bytes, collectives and, on a TPU, cycles.

All counts are of one turn of the program's outermost loop: a block of draws, or a step of an
attack. Those of a step of training are its share of the whole program, which makes the batches of
many steps before them. Loops inside count as often as they turn, or once where the text does not
tell.

The text form is no promise of XLA's. What is not found is None, never 0.
"""

import dataclasses
import math
import re

WIDTHS = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "s32": 4, "u32": 4,
          "f32": 4, "s64": 8, "u64": 8, "f64": 8}  # fmt: skip
# Neither computed by a kernel nor moved.
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all",
        "partition-id", "replica-id", "iota", "copy-done", "async-done",
        "async-start", "slice-start", "slice-done", "opt-barrier"}  # fmt: skip
COLLECTIVES = ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter",
               "collective-broadcast")  # fmt: skip
_SHAPE = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
_LINE = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")


@dataclasses.dataclass(frozen=True)
class Figures:
    """Of one turn; collectives of the whole program."""

    kernels: int
    megabytes: float  # that kernels read and write
    collectives: int
    megacycles: float | None


@dataclasses.dataclass(frozen=True)
class _Instruction:
    name: str
    operation: str
    result_bytes: int
    operands: tuple[str, ...]
    cycles: int | None
    called: dict[str, str]  # body and condition of a loop
    turns: int | None


def figures(text: str, steps: int | None = None) -> Figures:
    """Reads the text of a compiled program, `compiled.as_text()`.

    steps: that the whole program makes, of which one is counted; None for a turn of its loop.
    """
    computations, entry = _parse(text)
    counted = entry if steps else _main_loop(computations, entry)
    kernels, size, cycles = _sum(computations, counted)
    if steps:
        kernels, size = round(kernels / steps), size / steps
        cycles = None if cycles is None else cycles / steps
    collectives = sum(
        instruction.operation.removesuffix("-start") in COLLECTIVES
        for instructions in computations.values()
        for instruction in instructions
    )
    return Figures(kernels, size / 1e6, collectives, None if cycles is None else cycles / 1e6)


def _parse(text: str) -> tuple[dict[str, list[_Instruction]], str]:
    computations: dict[str, list[_Instruction]] = {}
    name, entry = "", ""
    constants: dict[str, list[int]] = {}  # of a condition, which hold a loop's number of turns
    for line in text.splitlines():
        if line and not line[0].isspace() and line.rstrip().endswith("{"):
            head = line.removeprefix("ENTRY ").lstrip("%")
            name = re.split(r"[ (]", head, maxsplit=1)[0]
            entry = name if line.startswith("ENTRY") else entry
            computations[name], constants[name] = [], []
        elif name and (match := _LINE.match(line)):
            constants[name] += map(int, re.findall(r"= s32\[\]\S* constant\((\d+)\)", line))
            if found := _instruction(match[1], match[2]):
                computations[name].append(found)
    for instructions in computations.values():
        for place, one in enumerate(instructions):
            if one.operation == "while" and one.turns is None:
                bounds = constants.get(one.called.get("condition", ""), [])
                if len(bounds) == 1:
                    instructions[place] = dataclasses.replace(one, turns=bounds[0])
    return computations, entry


def _instruction(name: str, rest: str) -> _Instruction | None:
    # "f32[2,3]{1,0} fusion(%a, %b), kind=kLoop, calls=..., backend_config=..."; results may be
    # tuples, and layouts hold brackets of their own.
    match = re.match(r"(\(.*?\)|\S+) ([a-z][\w\-]*)\(", rest)
    if rest.startswith("("):
        match = re.match(r"(\((?:[^()]|\([^()]*\))*\)) ([a-z][\w\-]*)\(", rest)
    if not match:
        return None
    arguments = rest[match.end() :].split(")", maxsplit=1)[0]
    cycles = re.search(r'"estimated_cycles":"(\d+)"', rest)
    turns = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', rest)
    return _Instruction(
        name=name,
        operation=match[2],
        result_bytes=_bytes(match[1]),
        operands=tuple(re.findall(r"%([\w.\-]+)", arguments)),
        cycles=int(cycles[1]) if cycles else None,
        called=dict(re.findall(r"\b(condition|body|to_apply)=%?([\w.\-]+)", rest)),
        turns=int(turns[1]) if turns else None,
    )


def _bytes(shapes: str) -> int:
    return sum(
        WIDTHS.get(kind, 0) * math.prod(int(size) for size in sizes.split(",") if size)
        for kind, sizes in _SHAPE.findall(shapes)
    )


def _main_loop(computations: dict[str, list[_Instruction]], name: str) -> str:
    """The body of the loop that has the most kernels; the program itself if it has none."""
    bodies = [each.called["body"] for each in computations[name] if each.operation == "while"]
    return max(bodies, key=lambda body: _sum(computations, body)[0], default=name)


def _sum(computations: dict[str, list[_Instruction]], name: str) -> tuple[int, float, float | None]:
    """Kernels, bytes and cycles of a computation run once."""
    sizes = {each.name: each.result_bytes for each in computations[name]}
    kernels, size, cycles, any_cycles = 0, 0.0, 0.0, False
    for each in computations[name]:
        if each.operation in ("while", "call", "conditional"):
            turns = 1 if each.turns is None else each.turns
            for part in each.called.values():
                inner = _sum(computations, part)
                kernels += turns * inner[0]
                size += turns * inner[1]
                cycles += turns * (inner[2] or 0)
                any_cycles |= inner[2] is not None
        elif each.operation not in FREE:
            kernels += 1
            size += each.result_bytes + sum(sizes.get(operand, 0) for operand in each.operands)
        cycles += each.cycles or 0
        any_cycles |= each.cycles is not None
    return kernels, size, cycles if any_cycles else None
