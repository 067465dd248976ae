"""Stage `device`: what jax finds, and the best that it is seen to do."""

import jax
import jax.numpy as jnp

from experiments.accept.outcome import Outcome
from experiments.accept.stages import Given
from experiments.bench.rows import Row
from snake_jax.costs import roofline
from snake_jax.profiling import measure

TABLE = "Device"


def run(given: Given) -> Outcome:
    """The first of all devices: kind, memory, rates."""
    device = jax.devices()[0]
    rows = [Row(TABLE, "devices", "count", len(jax.devices()))]
    free_gb = measure.free_bytes(device) / 1e9
    rows.append(Row(TABLE, "memory", "free", free_gb, "GB"))
    for dtype in (jnp.bfloat16, jnp.float32):
        peaks = roofline.measured_peaks(given.sizes.repeats, (dtype,))
        subject = f"products in {jnp.dtype(dtype).name}"
        rows.append(Row(TABLE, subject, "rate", peaks.flops_s / 1e12, "TFLOP/s"))
    rows.append(Row(TABLE, "a copy", "rate", peaks.bytes_s / 1e9, "GB/s"))
    return Outcome(rows)
