"""Vectors of one element type as LLVM code: loads, stores, multiply-adds, shuffles, loops, cases.

For functions that are Numba's `intrinsic`. Vectors have the width of the processor that Numba
compiles for.
"""

from llvmlite import ir
from numba.core import cgutils

from fastnc.kernels.cpu.processor import VECTOR_BYTES

# LLVM's locality of a prefetch: into all caches, or from the second on.
LEVEL_1, LEVEL_2 = 3, 2


class Emitter:
    """Emits LLVM code for vectors of one element type."""

    def __init__(self, builder, real):
        self.builder = builder
        self.size = real.bitwidth // 8
        self.lanes = VECTOR_BYTES // self.size
        self.element = ir.FloatType() if real.bitwidth == 32 else ir.DoubleType()
        self.vector = ir.VectorType(self.element, self.lanes)
        self.zero = ir.Constant(self.vector, [ir.Constant(self.element, 0.0)] * self.lanes)

    def start(self, context, kind, array, index):
        """The address of `array[index]`, for a flat index of a contiguous array."""
        data = context.make_array(kind)(context, self.builder, array).data
        return self.builder.gep(data, [index])

    def offset(self, pointer, *steps):
        """pointer + sum of products of (index, stride), in elements."""
        for index, stride in steps:
            if isinstance(index, int):
                index = ir.Constant(ir.IntType(64), index)
            pointer = self.builder.gep(pointer, [self.builder.mul(index, stride)])
        return pointer

    def skip(self, pointer, count):
        """pointer + a constant number of elements."""
        return self.builder.gep(pointer, [ir.Constant(ir.IntType(64), count)])

    def apart(self, pointer):
        """The same pointer, whose origin is hidden from the compiler.

        LLVM would compute each pointer from the one before, and multiply-adds would wait for that.
        """
        kind = ir.FunctionType(pointer.type, [pointer.type])
        return self.builder.asm(kind, "", "=r,0", [pointer], False)

    def load(self, pointer):
        pointer = self.builder.bitcast(pointer, self.vector.as_pointer())
        return self.builder.load(pointer, align=self.size)

    def store(self, value, pointer):
        pointer = self.builder.bitcast(pointer, value.type.as_pointer())
        self.builder.store(value, pointer, align=self.size)

    def prefetch(self, pointer, level):
        """Prefetches the cache line at an address, which need not be a valid one."""
        byte, flag = ir.IntType(8).as_pointer(), ir.IntType(32)
        function = cgutils.get_or_insert_function(
            self.builder.module,
            ir.FunctionType(ir.VoidType(), [byte, flag, flag, flag]),
            "llvm.prefetch.p0",
        )
        # For reading; the locality; data.
        flags = [ir.Constant(flag, number) for number in (0, level, 1)]
        self.builder.call(function, [self.builder.bitcast(pointer, byte), *flags])

    def splat(self, scalar):
        undefined = ir.Constant(self.vector, ir.Undefined)
        one = self.builder.insert_element(undefined, scalar, ir.Constant(ir.IntType(32), 0))
        return self.shuffle(one, undefined, [0] * self.lanes)

    def shuffle(self, x, y, indices):
        return _shuffle(self.builder, x, y, indices)

    def multiply_add(self, a, b, c):
        suffix = f"v{self.lanes}f{self.size * 8}"
        function = cgutils.get_or_insert_function(
            self.builder.module,
            ir.FunctionType(self.vector, [self.vector] * 3),
            f"llvm.fmuladd.{suffix}",
        )
        return self.builder.call(function, [a, b, c])

    def accumulate(self, count, starts, body):
        """`count >= 1` rounds of `sums = body(round, sums)` from `starts`."""
        builder, integer = self.builder, ir.IntType(64)
        before = builder.block
        loop = builder.append_basic_block("tile.loop")
        after = builder.append_basic_block("tile.after")
        builder.branch(loop)
        builder.position_at_end(loop)
        index = builder.phi(integer)
        sums = [builder.phi(start.type) for start in starts]
        new = body(index, sums)
        following = builder.add(index, ir.Constant(integer, 1))
        for phi, first, value in (
            (index, ir.Constant(integer, 0), following),
            *zip(sums, starts, new, strict=True),
        ):
            phi.add_incoming(first, before)
            phi.add_incoming(value, builder.block)
        builder.cbranch(builder.icmp_signed("<", following, count), loop, after)
        builder.position_at_end(after)
        return new

    def cases(self, value, numbers, body):
        """`body(n)` for the n of `numbers` that equals `value`."""
        builder = self.builder
        after = builder.append_basic_block("case.after")
        choice = builder.switch(value, after)
        for n in numbers:
            block = builder.append_basic_block(f"case.{n}")
            choice.add_case(ir.Constant(value.type, n), block)
            builder.position_at_end(block)
            body(n)
            builder.branch(after)
        builder.position_at_end(after)

    def sum_each(self, rows):
        """`sum_each` of `lanes` vectors."""
        return sum_each(self.builder, rows)

    def transposed(self, rows):
        """Row i of the result holds lane i of every row; `lanes` vectors."""

        def exchange(rows, step, low, high):
            out = list(rows)
            for i in range(self.lanes):
                if not i & step:
                    out[i] = self.shuffle(rows[i], rows[i + step], low)
                    out[i + step] = self.shuffle(rows[i], rows[i + step], high)
            return out

        return _butterfly(rows, exchange)


def sum_each(builder, rows):
    """Lane i of the result is the sum of the lanes of rows[i]; as many rows as lanes."""

    def halve(rows, _, low, high):
        return [
            builder.fadd(_shuffle(builder, x, y, low), _shuffle(builder, x, y, high))
            for x, y in zip(rows[::2], rows[1::2], strict=True)
        ]

    return _butterfly(rows, halve)[0]


def _butterfly(rows, combine):
    """`rows = combine(rows, step, low, high)` at each distance `step` of as many rows as lanes."""
    lanes, step = len(rows), 1
    while step < lanes:
        low = [i if not i & step else lanes + i - step for i in range(lanes)]
        high = [i + step if not i & step else lanes + i for i in range(lanes)]
        rows = combine(rows, step, low, high)
        step *= 2
    return rows


def _shuffle(builder, x, y, indices):
    mask = ir.Constant(ir.VectorType(ir.IntType(32), len(indices)), indices)
    return builder.shuffle_vector(x, y, mask)
