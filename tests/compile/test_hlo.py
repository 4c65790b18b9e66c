"""Reading programs: as the compilers for TPUs and for GPUs write them."""

from vmoe_prc.compile import hlo

GPU = "\n".join(
    [
        "%a = ((bf16[4,1,392,64]{3,2,1,0}), bf16[4,1,392,64]{3,2,1,0}) all-to-all-start(%x), "
        "channel_id=1, replica_groups={{0,1},{2,3}}, dimensions={0}",
        "%a.done = bf16[4,1,392,64]{3,2,1,0} all-to-all-done(%a)",
        "%g = (f32[2,8]{1,0}, f32[4,8]{1,0}) all-gather-start(%y), replica_groups=[2,2]<=[4], "
        "dimensions={0}",
        "%e = ((bf16[6,4]{1,0}, bf16[8,4]{1,0}, s64[2]{0}, s64[2]{0}, s64[2]{0}, "
        "/*index=5*/s64[2]{0}), bf16[8,4]{1,0}) ragged-all-to-all-start(%y, %z), "
        "replica_groups={{0,1},{2,3}}",
        "%e.done = bf16[8,4]{1,0} ragged-all-to-all-done(%e)",
        "%r = f32[685]{0} all-reduce-start(%z), replica_groups=mesh['a'=4,'b'=1] {'a'}",
        '%f = (bf16[2,8]{1,0}, u8[0]{0}) custom-call(%q), custom_call_target="__cudnn$fmhaSoftmax"',
        "%while.1 = (s32[], f32[8]) while(%t), condition=%c, body=%b, "
        'backend_config={"known_trip_count":{"n":"8"}}',
        "%while.2 = (s32[], f32[8]) while(%t), condition=%c, body=%d",
        "%copy.1 = f32[4,65]{1,0} copy(%x)",
        "%copy-start.1 = (bf16[8]{0}, bf16[8]{0}, u32[]) copy-start(%x)",
    ]
)
TPU = "\n".join(
    [
        "%r = (f32[16]{0:T(128)}, bf16[768,3072]{1,0:T(8,128)(2,1)}) all-reduce(%a, %b), "
        "replica_groups={{0,1,2,3}}, to_apply=%add",
        "%s = f32[4,8]{1,0} reduce-scatter(%a), replica_groups={{0,1},{2,3}}, dimensions={0}",
        "%send = (bf16[1,2,128]{2,1,0:T(2,128)(2,1)}, u32[], token[]) send(%x, %after-all), "
        'frontend_attributes={_xla_megascale_target="{1,2}x{0:7}",'
        '_xla_megascale_transfer_type="ALL_REDUCE"}',
        '%call = () custom-call(%a), custom_call_target="xla_python_cpu_callback"',
    ]
)


def test_collectives_of_a_gpu_are_counted_once_without_their_operands():
    exchanged, gathered, ragged, summed = hlo.collectives(GPU)
    assert (exchanged.kind, exchanged.bytes) == ("all-to-all", [4 * 392 * 64 * 2])
    assert exchanged.groups == gathered.groups == [[0, 1], [2, 3]]
    assert (gathered.kind, gathered.shapes, gathered.bytes) == ("all-gather", [(4, 8)], [128])
    assert (ragged.kind, ragged.shapes, ragged.bytes) == ("ragged-all-to-all", [(8, 4)], [64])
    assert (summed.kind, summed.groups, summed.bytes) == ("all-reduce", [[0, 1, 2, 3]], [2740])


def test_collectives_of_a_tpu():
    summed, scattered = hlo.collectives(TPU)
    assert summed.bytes == [64, 768 * 3072 * 2]
    assert scattered.bytes == [2 * 128], "what goes in, not what comes out"


def test_a_collective_behind_several_fusions_is_one():
    line = "%g.{} = bf16[4,8]{{1,0}} all-gather(%a), channel_id=1, replica_groups={{{{0,1}}}}, "
    line += 'frontend_attributes={{chain_id="{}"}}'
    text = "\n".join(line.format(i, chain) for i, chain in enumerate("00010"))
    assert [x.bytes for x in hlo.collectives(text)] == [[64], [64]]


def test_what_leaves_a_slice():
    assert hlo.between_slices(TPU) == {"all-reduce": (1, 2 * 128 * 2)}
    assert not hlo.between_slices(GPU)


def test_calls_loops_and_copies():
    assert hlo.custom_calls(GPU) == {"__cudnn$fmhaSoftmax": 1}
    assert hlo.loops(GPU) == (2, 1)
    assert hlo.copies(GPU) == (2, 4 * 65 * 4 + 16)
    assert (hlo.host_calls(GPU), hlo.host_calls(TPU)) == (0, 1)


def test_largest_arrays_are_named_by_what_makes_them():
    text = """
      %p = f32[1000]{0} parameter(0)
      %a = f32[10,4]{1,0} add(%x, %y), metadata={op_name="jit(train_step)/Encoder/block_1/add"}
      %b = bf16[30]{0} multiply(%x, %y), metadata={op_name="jit(train_step)/head/mul"}
    """
    assert hlo.largest_arrays(text) == [
        ("f32[10,4] Encoder/block_1/add", 160),
        ("bf16[30] head/mul", 60),
    ]
