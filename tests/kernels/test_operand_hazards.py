"""The scan for operands that are overwritten too early, on PTX written for it."""

import pytest
from operand_hazards import hazards

# Two warpgroups; a ring of two buffers of 64 x 64 bf16 that all threads fill, and that all read.
RING = """
.version 8.8
.target sm_90a
.extern .shared .align 16 .b8 global_smem[];
.visible .entry ring(
	.param .u64 .ptr .global .align 1 ring_param_0,
	.param .u32 ring_param_1
)
.reqntid 256
{
	.reg .pred %p<4>;
	ld.param.b32 %r1, [ring_param_1];
	ld.param.b64 %rd1, [ring_param_0];
	mov.u32 %r2, %tid.x;
	shl.b32 %r3, %r2, 4;
	mov.b32 %r4, global_smem;
	add.s32 %r5, %r4, %r3;
	mov.b32 %r6, 0;
	mov.b32 %r9, 0;
$L__BB0_1:
	add.s32 %r7, %r5, %r6;
	FIRST cp.async.cg.shared.global [ %r7 + 0 ], [ %rd1 + 0 ], 0x10, 16;
	cp.async.cg.shared.global [ %r7 + 4096 ], [ %rd1 + 0 ], 0x10, 16;
	cp.async.commit_group;
	cp.async.wait_group 0;
	FILLED
	shr.u32 %r8, %r6, 4;
	cvt.u64.u32 %rd2, %r8;
	or.b64 %rd3, %rd2, 4611686293305294848;
wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {%f1,%f2}, {%r20,%r21}, %rd3, 0, 1, 1, 0;
	wgmma.commit_group.sync.aligned;
	wgmma.wait_group.sync.aligned PENDING;
	READ
	xor.b32 %r6, %r6, OTHER;
	add.s32 %r9, %r9, 1;
	setp.lt.s32 %p1, %r9, %r1;
	@%p1 bra $L__BB0_1;
	ret;
}
"""
BARRIER = "bar.sync 0;"


def ring(filled=BARRIER, read="", pending=0, other=8192, fill=""):
    text = RING.replace("FILLED", filled).replace("READ", read).replace("FIRST", fill)
    return text.replace("PENDING", str(pending)).replace("OTHER", str(other))


def test_a_ring_of_two_buffers_needs_one_barrier_a_turn():
    assert hazards(ring()) == []
    # One buffer needs a second one: before the next turn fills it.
    assert hazards(ring(other=0, read=BARRIER)) == []


def test_a_wait_of_one_warpgroup_is_not_known_to_another():
    found = hazards(ring(other=0))
    assert [h.statement.split()[0] for h in found] == ["cp.async.cg.shared.global"] * 2
    assert all("no barrier follows the wait" in h.why for h in found)
    # A barrier of the warp alone is none.
    assert len(hazards(ring(other=0, read="bar.warp.sync -1;"))) == 2


def test_a_product_under_way_keeps_its_operands():
    found = hazards(ring(other=0, pending=1, read=BARRIER))
    assert len(found) == 2 and all("under way" in h.why for h in found)
    # Two buffers, a product in each: the older one has ended.
    assert hazards(ring(pending=1, read=BARRIER)) == []


def test_who_does_not_write_overwrites_nothing():
    off = "setp.lt.s32 %p2, %r2, 0;\n\t@%p2"
    found = hazards(ring(other=0, fill=off))
    assert len(found) == 1 and "4096" in found[0].statement


def test_one_warpgroup_knows_of_its_own_wait():
    assert hazards(ring(other=0).replace(".reqntid 256", ".reqntid 128")) == []


def test_what_only_some_threads_compute_is_passed_over():
    # The logarithm of a float, of numbers that are not 0.
    some = "setp.eq.f32 %p3, %f1, %f2;\n\t@%p3 bra $L__BB0_2;\n\tlg2.approx.f32 %f3, %f1;\n"
    assert hazards(ring(read=some + "$L__BB0_2:\n\tadd.f32 %f4, %f3, %f1;")) == []
    found = hazards(ring(other=0, read=some + "$L__BB0_2:\n\tadd.f32 %f4, %f3, %f1;"))
    assert len(found) == 2


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("mov.b32 %r6, 0;", "ld.global.b32 %r6, [ %rd1 + 0 ];", "depends on data"),
        (BARRIER, "@%p3 bra $L__BB0_2;\n\tbar.sync 0;\n$L__BB0_2:", "depends on data"),
        ("mov.b32 %r9, 0;", "mov.u32 %r9, %tid.x;\n\tadd.s32 %r9, %r9, 4000;", "threads part"),
        ("cp.async.commit_group;", "red.shared.add.u32 [ %r4 ], 1;", "not known here"),
        ("4611686293305294848", "274877906944", "not swizzled"),
    ],
)
def test_what_cannot_be_told_is_said(old, new, sentence):
    with pytest.raises(ValueError, match=sentence):
        hazards(ring().replace(old, new))
