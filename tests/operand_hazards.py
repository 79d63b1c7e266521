"""Writes to shared memory that a product may still be reading, found in PTX by its integers.

A `wgmma` reads its operands from shared memory while the program goes on. The four warps that
started it know by `wgmma.wait_group` that it is done; those of another warpgroup know only after a
barrier that follows. Compilers have left that barrier out (with eight warps), which no interpreter
shows. So all threads of a block are played here, on their integers alone: addresses, predicates,
loops. What is computed of data is unknown, and must not be asked for.
"""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

# Shared memory is watched in units of so many bytes, the least that an operand is aligned to.
UNIT = 16
BYTES = 256 * 1024
# Sizes are so large that no loop ends by itself: each is left after so many turns, more than there
# are stages of any pipeline.
SIZE = 4096
MOST_TURNS = 8
_STRIDES = {1: 128, 2: 64, 3: 32}


class Hazard(NamedTuple):
    """A write, the statement and its line, to what a product may still read."""

    line: int
    statement: str
    why: str


class _Unknown(Exception):
    pass


class _Statement(NamedTuple):
    line: int
    guard: str
    opcode: str
    operands: list[str]
    text: str


def hazards(ptx: str, messages: Sequence[int] = ()) -> list[Hazard]:
    """Every write to an operand that comes before a product's end is known, each line once.

    `messages` are the bytes that one copy by each descriptor writes, in the order of arguments.

    Raises
    ------
    ValueError
        Control flow or an address depends on data, or an instruction is one that is not known here.
    """
    return list(_Block(ptx, messages).run().values())


class _Block:
    """The threads of a block, in step: a register is an array of all of theirs, None if unknown."""

    def __init__(self, ptx: str, messages: Sequence[int]) -> None:
        self.threads = int(re.search(r"\.reqntid\s+(\d+)", ptx).group(1))
        self.groups = max(1, self.threads // 128)
        self.lanes = np.arange(self.threads)
        self.statements, self.labels = _parsed(ptx)
        self.values: dict[str, np.ndarray | None] = {"global_smem": self._of(0)}
        self.messages: dict[int, int] = {}
        for name, value in (("tid.x", self.lanes), ("ntid.x", self._of(self.threads))):
            self.values["%" + name] = value
        for place, name in enumerate(re.findall(r"\.param\s+[^,()]*?([\w$]+_param_\d+)", ptx)):
            is_pointer = re.search(rf"\.ptr[^,()]*{re.escape(name)}\b", ptx)
            is_descriptor = f"{name}[128]" in ptx
            if is_descriptor:
                self.messages[place + 1] = messages[len(self.messages)]
            self.values[name] = self._of((place + 1) << 40 if is_pointer or is_descriptor else SIZE)
        # Of each warpgroup: the group of products that reads a unit last, 0 where that is over.
        self.reading = np.zeros((self.groups, BYTES // UNIT), np.int64)
        self.committed, self.ended = 1, 0
        self.found: dict[int, Hazard] = {}

    def _of(self, value: int) -> np.ndarray:
        return np.full(self.threads, value, np.int64)

    def run(self) -> dict[int, Hazard]:
        """All statements in order, branches taken."""
        at, turns = 0, dict.fromkeys(range(len(self.statements)), 0)
        while at < len(self.statements):
            s = self.statements[at]
            try:
                target = self._step(s)
            except _Unknown:
                target = self._passed_over(at)
            if target == "ret":
                break
            to = self.labels[target] if target else at + 1
            if to <= at:
                turns[at] = (turns[at] + 1) % MOST_TURNS
                to = to if turns[at] else at + 1
            at = to
        return self.found

    def _passed_over(self, at: int) -> str:
        """The label behind what only some threads compute, which is unknown from then on."""
        s = self.statements[at]
        over = self.statements[at + 1 : self.labels[s.operands[0]]] if s.opcode == "bra" else []
        if not over or not all(x.operands and x.operands[0][0] in "%{" for x in over):
            raise ValueError(f"line {s.line} depends on data: {s.text}")
        for x in over:
            self.values.update(dict.fromkeys(re.findall(r"%\w+", x.operands[0])))
        return s.operands[0]

    def _step(self, s: _Statement) -> str:
        """One statement; the label to go on at, if it is not the next."""
        kind = s.opcode.split(".")[0]
        if kind in ("bra", "ret"):
            taken = self._guard(s)
            if taken.all():
                return s.operands[0] if kind == "bra" else "ret"
            if taken.any():
                raise ValueError(f"line {s.line}: threads part: {s.text}")
        elif kind in ("bar", "barrier") and "warp" not in s.opcode:
            self.reading[(self.reading > 0) & (self.reading <= self.ended)] = 0
        elif kind == "wgmma":
            self._product(s)
        elif kind in ("st", "stmatrix", "cp") and "shared" in s.opcode:
            self._write(s)
        elif kind == "elect":
            # One lane of a warp.
            self.values[s.operands[0].split("|")[1]] = (self.lanes % 32 == 0).astype(np.int64)
        elif kind == "mbarrier":
            # What a copy writes is taken to be written when the copy begins.
            pass
        elif kind in ("red", "atom") and "shared" in s.opcode:
            raise ValueError(f"line {s.line}: not known here: {s.text}")
        elif s.operands and s.operands[0][0] in "%{":
            self._compute(kind, s)
        return ""

    def _guard(self, s: _Statement) -> np.ndarray:
        if not s.guard:
            return self._of(1).astype(bool)
        held = self.value(s.guard.lstrip("!")).astype(bool)
        return ~held if s.guard.startswith("!") else held

    def value(self, operand: str) -> np.ndarray:
        """What an operand is worth to each thread."""
        if re.fullmatch(r"-?\d+|0x[0-9a-fA-F]+U?", operand):
            number = int(operand.rstrip("U"), 0)
            return self._of(number - (1 << 64) if number >> 63 > 0 else number)
        if operand.startswith("%") and operand.split(".")[0] in ("%ctaid", "%nctaid"):
            return self._of(int(operand.startswith("%n")))
        found = self.values.get(operand)
        if found is None:
            raise _Unknown
        return found

    def _address(self, operand: str) -> np.ndarray:
        base, _, offset = operand.strip("[] ").partition("+")
        return self.value(base.strip()) + int(offset or 0)

    def _write(self, s: _Statement) -> None:
        """What each thread overwrites, if anything."""
        writes = self._guard(s)
        if "bulk.tensor" in s.opcode and "im2col" not in s.opcode:
            size = self.messages[int(self.value(s.operands[1].lstrip("["))[0]) >> 40]
        elif "bulk" in s.opcode:
            raise ValueError(f"line {s.line}: not known here: {s.text}")
        elif s.opcode.startswith("cp"):
            size = int(s.operands[2], 0)
        elif s.opcode.startswith("stmatrix"):
            # Each of the first lanes of a warp gives the address of a row of 8.
            size, rows = 16, 8 * int(re.search(r"\.x(\d)", s.opcode).group(1))
            writes = writes & (self.lanes % 32 < rows)
        else:
            many = re.search(r"\.v(\d)", s.opcode)
            size = int(re.search(r"\.[bfsu](\d+)", s.opcode).group(1)) // 8
            size *= int(many.group(1)) if many else 1
        first = np.where(writes, self._address(s.operands[0]), 0)
        group = self.lanes // 128 % self.groups
        for byte in {0, *range(UNIT, size, UNIT), size - 1}:
            unit = (first + byte) // UNIT
            for reader in range(self.groups):
                last = self.reading[reader, unit]
                own = group == reader
                if (writes & (last > self.ended)).any():
                    why = "a product that is under way reads this"
                elif (writes & (last > 0) & ~own).any():
                    why = "no barrier follows the wait of the warpgroup that read this"
                else:
                    continue
                self.found.setdefault(s.line, Hazard(s.line, s.text, why))

    def _product(self, s: _Statement) -> None:
        """A statement of the tensor cores: an operand is read, or a wait is over."""
        if "commit_group" in s.opcode:
            self.committed += 1
        elif "wait_group" in s.opcode:
            self.ended = max(self.ended, self.committed - 1 - int(s.operands[0]))
        elif "mma_async" in s.opcode:
            n = int(re.search(r"m64n(\d+)", s.opcode).group(1))
            operands = s.operands[1:3]
            flags = s.operands[6:]
            for place, operand in enumerate(operands):
                if operand.startswith("{"):
                    continue
                # Of an A in registers there is no flag.
                across = flags[place if len(flags) == 2 else 0] == "1"
                self._read(self.value(operand), 64 if place == 0 else n, across)

    def _read(self, descriptor: np.ndarray, rows: int, across: bool) -> None:
        """Marks what a descriptor tells of: `rows` by 32 bytes, or 16 by `rows` numbers of 2."""
        for group in range(self.groups):
            word = int(descriptor[min(128 * group, self.threads - 1)]) & (1 << 64) - 1
            start, leading, stride = (((word >> b) & 0x3FFF) * 16 for b in (0, 16, 32))
            if word >> 62 not in _STRIDES:
                raise ValueError("an operand that is not swizzled is not known here")
            width = _STRIDES[word >> 62]
            atom = 8 * width
            start = start // atom * atom
            if across:
                blocks = -(-2 * rows // width)
                corners = [start + i * leading + k * stride for i in range(blocks) for k in (0, 1)]
            else:
                corners = [start + i * stride for i in range(-(-rows // 8))]
            for corner in corners:
                self.reading[group, corner // UNIT : (corner + atom) // UNIT] = self.committed

    def _compute(self, kind: str, s: _Statement) -> None:
        """A register's new value, or that it is unknown."""
        out, *operands = s.operands
        try:
            if kind == "ld" and "param" in s.opcode:
                result = self.value(operands[0].strip("[]"))
            elif kind == "shfl" and ".idx" in s.opcode:
                lane = self.lanes // 32 * 32 + self.value(operands[1])
                result = self.value(operands[0])[lane]
            elif kind in _OPERATIONS and not re.search(r"\.b?f\d+", s.opcode):
                result = _OPERATIONS[kind](s.opcode, *map(self.value, operands))
                result = _wrapped(np.asarray(result, np.int64), kind, s.opcode)
            else:
                result = None
        except (_Unknown, TypeError):
            result = None
        if s.guard and result is not None:
            old = self.values.get(out)
            result = None if old is None else np.where(self._guard(s), result, old)
        # Of several registers each has a part, of which nothing is known.
        for name in re.findall(r"%[\w.]+", out):
            self.values[name] = None if out.startswith("{") else result


def _parsed(ptx: str) -> tuple[list[_Statement], dict[str, int]]:
    """The statements of the kernel, and which one each label stands before."""
    statements: list[_Statement] = []
    labels: dict[str, int] = {}
    body = ptx.index("{", ptx.index(".reqntid"))
    first = ptx[:body].count("\n") + 1
    for number, line in enumerate(ptx[body:].split("\n"), first):
        text = line.split("//")[0].strip()
        if re.match(r"[$\w]+:$", text):
            labels[text[:-1]] = len(statements)
            continue
        if text.startswith((".section", ".file")):
            break
        for part in text.split(";"):
            found = re.match(r"(?:@(!?%\w+)\s+)?([a-z][\w.:]*)\s*(.*)", part.strip())
            if found:
                guard, opcode, rest = found.groups()
                operands = [x.strip() for x in re.findall(r"\{[^}]*\}|[^,{]+", rest) if x.strip()]
                statements.append(_Statement(number, guard or "", opcode, operands, part.strip()))
    return statements, labels


def _width(opcode: str) -> int:
    """Bits of the last type that an opcode names."""
    return int(re.findall(r"\.[bsu](\d+)", opcode)[-1])


def _unsigned(x: np.ndarray, bits: int) -> np.ndarray:
    return x & ((1 << bits) - 1) if bits < 64 else x


def _wrapped(x: np.ndarray, kind: str, opcode: str) -> np.ndarray:
    """To the width of the result, signed."""
    if kind == "setp" or "pred" in opcode:
        return (x != 0).astype(np.int64)
    bits = int(re.search(r"\.[bsu](\d+)", opcode).group(1)) * (2 if ".wide" in opcode else 1)
    if bits >= 64:
        return x
    return (_unsigned(x, bits) ^ (1 << (bits - 1))) - (1 << (bits - 1))


def _signed(opcode: str) -> bool:
    return opcode.split(".")[-1].startswith("s")


def _converted(opcode: str, x: np.ndarray) -> np.ndarray:
    return x if _signed(opcode) else _unsigned(x, _width(opcode))


def _shifted_right(opcode: str, x: np.ndarray, n: np.ndarray) -> np.ndarray:
    if _signed(opcode) or _width(opcode) < 64:
        return (x if _signed(opcode) else _unsigned(x, _width(opcode))) >> n
    return (x.astype(np.uint64) >> n.astype(np.uint64)).astype(np.int64)


def _permuted(opcode: str, a: np.ndarray, b: np.ndarray, selector: np.ndarray) -> np.ndarray:
    """Four bytes of eight, each by a nibble; one whose highest bit is set repeats a sign."""
    if opcode != "prmt.b32":
        raise _Unknown
    pool = _unsigned(a, 32) | _unsigned(b, 32) << 32
    out = a * 0
    for byte in range(4):
        nibble = selector >> 4 * byte
        taken = pool >> 8 * (nibble & 7) & 0xFF
        taken = np.where(nibble & 8, (taken >> 7) * 0xFF, taken)
        out = out | taken << 8 * byte
    return out


def _multiplied(opcode: str, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if opcode.startswith(("mul.hi", "mad.hi")):
        raise _Unknown
    if ".wide.u32" in opcode:
        a, b = _unsigned(a, 32), _unsigned(b, 32)
    return a * b


def _compared(opcode: str, a: np.ndarray, b: np.ndarray, *more: np.ndarray) -> np.ndarray:
    _, comparison, *_ = opcode.split(".")
    if comparison not in _COMPARISONS or more:
        raise _Unknown
    if not _signed(opcode):
        a, b = _unsigned(a, _width(opcode)), _unsigned(b, _width(opcode))
    return _COMPARISONS[comparison](a, b)


_COMPARISONS: dict[str, Callable] = {
    "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
    "eq": np.equal, "ne": np.not_equal,
}  # fmt: skip
_OPERATIONS: dict[str, Callable] = {
    "mov": lambda op, x: x,
    "cvta": lambda op, x: x,
    "cvt": _converted,
    "add": lambda op, a, b: a + b,
    "sub": lambda op, a, b: a - b,
    "neg": lambda op, a: -a,
    "mul": _multiplied,
    "mad": lambda op, a, b, c: _multiplied(op, a, b) + c,
    "and": lambda op, a, b: a & b,
    "or": lambda op, a, b: a | b,
    "xor": lambda op, a, b: a ^ b,
    "not": lambda op, a: np.where(a == 0, 1, 0) if "pred" in op else ~a,
    "shl": lambda op, x, n: x << n,
    "shr": _shifted_right,
    "bfe": lambda op, x, low, n: (_unsigned(x, _width(op)) >> low) & ((1 << n) - 1),
    "prmt": _permuted,
    "min": lambda op, a, b: np.minimum(a, b),
    "max": lambda op, a, b: np.maximum(a, b),
    "selp": lambda op, a, b, p: np.where(p != 0, a, b),
    "setp": _compared,
}
