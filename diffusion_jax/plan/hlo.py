"""What a compiled program's text (HLO) says: what chips send each other, and how long the compiler thinks it takes."""

import math
import re
from typing import NamedTuple

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_BYTES = {
    "pred": 1,
    "s8": 1,
    "u8": 1,
    "bf16": 2,
    "f16": 2,
    "s16": 2,
    "u16": 2,
    "f64": 8,
    "s64": 8,
    "u64": 8,
}  # others: 4
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*\{$")
_EXCHANGE = re.compile(rf"^\s+(?:ROOT )?%?[\w.-]+ = (.+?) ({'|'.join(KINDS)})(-start)?\(")
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
_CALLED = re.compile(
    r"(?:calls|to_apply|body|condition|branch_computations|called_computations)=\{?([^,}\s]+(?:, ?%[^,}\s]+)*)"
)
_CHAIN = re.compile(r'\bchain_id="\d+"')
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')


class Collective(NamedTuple):
    """One kind of exchange, summed over a program's run on one chip.

    calls: how often.
    bytes: of the whole arrays: what is summed, what a gathering ends with, what a scattering begins with.
    received: bytes that must arrive at a chip at least: of n chips (n - 1) / n of the array, for an all-reduce twice that.
    """

    calls: int
    bytes: float
    received: float


def collectives(text: str) -> dict[str, Collective]:
    """The exchanges of a compiled program's text, by kind; a loop's body counts as often as it runs.

    An all-reduce that is fused with the slicing of its result (a TPU's way to scatter) is counted as a reduce-scatter. An
    exchange that goes on beside products is written in each of the fusions that it spans, with one chain_id: it counts once.
    """
    exchanges: dict[str, tuple[str, Collective]] = {}
    computations = _split(text)
    for name, runs in _runs(computations, fused=True).items():
        for number, line in enumerate(computations.get(name, ())):
            if match := _EXCHANGE.match(line):
                kind, size, received = _exchange(name, line, *match.groups())
                chain = _CHAIN.search(line)
                key = chain[0] if chain else f"{name} {number}"
                found = kind, Collective(runs, runs * size, runs * received)
                exchanges[key] = max(exchanges.get(key, found), found, key=lambda pair: pair[1].calls)
    return {
        kind: total for kind in KINDS if (total := _sum([one for other, one in exchanges.values() if other == kind]))
    }


def _sum(collectives: list[Collective]) -> Collective | None:
    return Collective(*map(sum, zip(*collectives, strict=True))) if collectives else None


def cycles(text: str) -> int:
    """The sum of the compiler's estimates for each operation that has one; 0 where the backend makes none (not a TPU).

    Exchanges have none, and of operations that only pass over memory it thinks ill (docs/plan.md has the measure).
    """
    computations = _split(text)
    return sum(
        runs * sum(int(match[1]) for match in map(_CYCLES.search, computations.get(name, ())) if match)
        for name, runs in _runs(computations, fused=False).items()
    )


def _exchange(computation: str, line: str, shape: str, kind: str, start: str | None) -> tuple[str, float, float]:
    """(kind, bytes, received bytes) of an operation of this result."""
    arrays = _ARRAY.findall(shape)
    sizes = [
        _BYTES.get(dtype, 4) * math.prod(int(side) for side in sides.split(",") if side) for dtype, sides in arrays
    ]
    if start and kind == "collective-permute":
        sizes = sizes[1:2]  # of (operand, result, two flags)
    elif start and kind != "all-reduce":
        sizes = sizes[len(sizes) // 2 :]  # of (operands, results)
    size = float(sum(sizes))
    if kind == "collective-permute":
        return kind, size, size
    group = _group(line)
    if kind == "reduce-scatter":
        size *= group
    if kind == "all-reduce" and computation.startswith("all-reduce-scatter"):
        kind = "reduce-scatter"
    return kind, size, size * (group - 1) / group * (2 if kind == "all-reduce" else 1)


def _group(line: str) -> int:
    """How many chips exchange with each other: {{0,1},{2,3}}, [2,2]<=[4] and mesh['a'=2,'b'=2] {'b'} are all 2."""
    if match := re.search(r"replica_groups=\{\{([\d,]*)\}", line):
        return len(match[1].split(","))
    if match := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
        return int(match[1])
    if match := re.search(r"replica_groups=mesh\[(.*?)\][^{]*\{(.*?)\}", line):
        sides = dict(re.findall(r"'(\w+)'=(\d+)", match[1]))
        parts = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", match[2])  # 'a':(1)2 is a part of the axis, of 2
        return math.prod(int(part or sides[axis]) for axis, part in parts)
    raise ValueError(f"no replica_groups that are known in: {line.strip()[:300]}")


def _split(text: str) -> dict[str, list[str]]:
    """The lines of each computation; the first is named ENTRY."""
    computations: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            lines = computations["ENTRY" if line.startswith("ENTRY") else match[1]] = []
        elif line.startswith(" "):
            lines.append(line)
    return computations


def _runs(computations: dict[str, list[str]], fused: bool) -> dict[str, int]:
    """How often each computation runs in one run of the program; what is inside fusions only if asked for."""
    runs: dict[str, int] = {}

    def visit(name: str, times: int) -> None:
        runs[name] = runs.get(name, 0) + times
        for line in computations.get(name, ()):
            if " fusion(" in line and not fused:
                continue
            called = [inner for names in _CALLED.findall(line) for inner in re.findall(r"[\w.-]+", names)]
            trips = _trips(line, computations) if " while(" in line else 1
            for inner in called:
                visit(inner, times * trips)

    visit("ENTRY", 1)
    return runs


def _trips(line: str, computations: dict[str, list[str]]) -> int:
    """How often a loop runs: as the line says, or else up to the number in its condition, as `lax.scan` counts; or 1."""
    if match := re.search(r'known_trip_count"?:\{"?n"?:"?(\d+)', line):
        return int(match[1])
    condition = re.search(r"condition=%?([\w.-]+)", line)
    lines = computations.get(condition[1], ()) if condition else ()
    limits = [int(match[1]) for match in (re.search(r"constant\((\d+)\)", line) for line in lines) if match]
    return max(limits, default=1)
