"""What is read from a compiled program's text: where arrays lie, and the cycles of its kernels."""

from experiments.bench.kernels.described import Placed, placed, scheduled_cycles
from snake_jax.costs import roofline

PROGRAM = """
%fused_computation.1 (p: f32[8,16]) -> f32[8,16] {
  %inner = f32[8,16]{1,0} copy(%p)
}

ENTRY %main (x: f32[8,16]) -> f32[16,8] {
  %loop.1 = (f32[8]{0}, f32[8,16]{1,0:T(8,128)S(1)}) fusion(%x), kind=kLoop, \
calls=%fused_computation.1, \
backend_config={"window_config":{"estimated_cycles":"900","iteration_bounds":["3","4"]}}
  %dot.1 = f32[16,8]{1,0:T(8,128)} fusion(%x), kind=kOutput, \
calls=%fused_computation.1, \
backend_config={"window_config":{"estimated_cycles":"700","iteration_bounds":["2"]},\
"convolution_algorithm_config":{}}
}
"""


def test_arrays_are_counted_where_kernels_write_them_and_not_inside():
    assert placed(PROGRAM, "f32", (16, 8)) == Placed(vmem=1, hbm=1)
    assert placed(PROGRAM, "bf16", (16, 8)) == Placed(vmem=0, hbm=0)


def test_cycles_are_bundles_times_iterations_and_for_products_the_estimate():
    assert scheduled_cycles(PROGRAM, {"loop.1": 10, "dot.1": 5}, steps=1) == 10 * 12 + 700
    assert scheduled_cycles("", {"kernel": 10}, steps=6) == 60
    assert scheduled_cycles(PROGRAM, {}, steps=1) is None


def test_the_roofline_is_the_slower_of_both_peaks():
    peaks = roofline.Peaks(flops_s=100.0, bytes_s=10.0)
    assert peaks.least_s(flops=200, moved_bytes=5) == 2.0
    assert peaks.least_s(flops=200, moved_bytes=50) == 5.0
