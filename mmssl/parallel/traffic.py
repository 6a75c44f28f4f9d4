"""What a compiled program sends between devices, read off its text."""

import dataclasses
import functools
import math
import re
from collections.abc import Iterable

import numpy as np

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)


@dataclasses.dataclass(frozen=True)
class Collective:
    """One instruction of a compiled (partitioned) program.

    Attributes:
      kind: one of `KINDS`.
      bytes: of its result, on one device.
      times: how often a step runs it; loops of unknown length count once.
      groups: ids of the devices that talk with each other, in the mesh's order; pairs
        for a collective permute; empty = all with all.
    """

    kind: str
    bytes: int
    times: int
    groups: tuple[tuple[int, ...], ...]

    @property
    def sent(self) -> float:
        """Bytes that one device must send in a step, by the usual ring algorithms."""
        size = max(map(len, self.groups), default=0)
        others = (size - 1) / size if size else 1.0
        factor = {
            "all-reduce": 2 * others,
            "all-gather": others,
            "reduce-scatter": others * max(size, 1),
            "all-to-all": others,
            "collective-permute": 1.0,
        }[self.kind]
        return factor * self.bytes * self.times

    def crosses(self, island: int) -> bool:
        """Whether a group has devices of several islands of that many."""
        return any(len({d // island for d in group}) > 1 for group in self.groups)


_INSTRUCTION = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(-start)?\(")
_ARRAY = re.compile(r"\b(pred|[a-z]+(\d+)\w*)\[([\d,]*)\]")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_CALLED = re.compile(
    r"(?:body|calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'known_trip_count"?:\s*\{"?n"?:\s*"?(\d+)')
_LISTED = re.compile(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{} ]*\})\}")
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}")
_IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")


def instruction(line: str) -> tuple[str, int] | None:
    """Kind and bytes of the result of the collective on a line of a program, if any."""
    found = _INSTRUCTION.search(line)
    if not found:
        return None
    arrays = _ARRAY.findall(found[1])
    if found[3] and found[2] != "all-reduce":
        # Operands, results, and scalars of the runtime.
        arrays = [array for array in arrays if array[2]]
        arrays = arrays[len(arrays) // 2 :]
    return found[2], _size(arrays)


def collectives(text: str) -> list[Collective]:
    """Those of one run of a program.

    Args:
      text: `compiled.as_text()`.
    """
    own: dict[str, list[Collective]] = {}
    calls: dict[str, list[tuple[str, int]]] = {}
    entry = here = ""
    for line in text.splitlines():
        header = _HEADER.match(line)
        if header:
            here = header[2]
            entry = here if header[1] else entry
            own[here], calls[here] = [], []
            continue
        found = instruction(line)
        if found:
            own[here].append(Collective(*found, 1, _groups(line)))
        trips = _TRIPS.search(line) if " while(" in line else None
        names = _CALLED.findall(line)
        for listed in _BRANCHES.findall(line):
            names += re.findall(r"[\w.\-]+", listed)
        calls.get(here, []).extend((n, int(trips[1]) if trips else 1) for n in names)

    @functools.cache
    def inside(name: str) -> tuple[Collective, ...]:
        below = [
            dataclasses.replace(c, times=c.times * times)
            for callee, times in calls.get(name, ())
            for c in inside(callee)
        ]
        return (*own.get(name, ()), *below)

    return list(inside(entry))


def _size(arrays: Iterable[tuple[str, str, str]]) -> int:
    """Bytes of matches of `_ARRAY`."""
    return sum(
        math.prod(int(n) for n in sizes.split(",") if n) * max(int(bits or 8) // 8, 1)
        for _, bits, sizes in arrays
    )


def _groups(line: str) -> tuple[tuple[int, ...], ...]:
    """From `{{0,1},{2,3}}`; `[2,2]<=[4]T(...)`, an iota, transposed, in rows; or
    `mesh['a'=2,'b'=2] {'b'}`, the axes of a mesh, perhaps parts of them `'b':(1)2`."""
    listed = _LISTED.search(line)
    if listed:
        return tuple(_ints(group) for group in re.findall(r"\{([\d, ]*)\}", listed[1]))
    found = _IOTA.search(line)
    if found:
        shape, source = _ints(found[1]), _ints(found[2])
        ids = np.arange(math.prod(source)).reshape(source)
        ids = ids.transpose(_ints(found[3])) if found[3] else ids
        return _rows(ids.reshape(shape))
    found = _MESH.search(line)
    if not found:
        return ()
    used = {
        name: (int(before or 1), int(size or 0))
        for name, before, size in re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", found[2])
    }
    sizes, inside = [], []
    for name, size in re.findall(r"'(\w+)'=(\d+)", found[1]):
        before, part = used.get(name, (1, 1))
        part = part or int(size)
        sizes += [before, part, int(size) // before // part]
        inside += [False, name in used, False]
    ids = np.arange(math.prod(sizes)).reshape(sizes)
    order = sorted(range(len(sizes)), key=lambda axis: inside[axis])
    members = math.prod(n for n, own in zip(sizes, inside, strict=True) if own)
    return _rows(ids.transpose(order).reshape(-1, members))


def _rows(ids: np.ndarray) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(map(int, row)) for row in ids)


def _ints(listed: str) -> tuple[int, ...]:
    return tuple(int(n) for n in listed.split(",") if n.strip())


def by_kind(found: Iterable[Collective]) -> dict[str, tuple[int, float]]:
    """Kind -> (how many run in a step, bytes that a device sends)."""
    total: dict[str, tuple[int, float]] = {}
    for c in found:
        count, sent = total.get(c.kind, (0, 0.0))
        total[c.kind] = count + c.times, sent + c.sent
    return total
