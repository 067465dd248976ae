"""The search for what fits, against a device whose answers are a formula, and the launch that it
prints.
"""

import os
import subprocess
import sys

import hypothesis
import pytest
from hypothesis import strategies as st

from snake_jax.config import TextConfig
from snake_jax.costs.compiled import Compiled, CompiledMemory, Refused, devices
from snake_jax.errors import UserError
from snake_jax.profiling import fits, launches
from snake_jax.profiling.fits import Candidate, FitSearch

DTYPES = ("bfloat16", "int8", "nf4")
STORED = dict(zip(DTYPES, (4, 2, 1), strict=True))


def needed(candidate, row_bytes=3.0, weights=100):
    stored = weights * STORED[candidate.frozen_dtype] + 10 * candidate.rank
    return int(stored + row_bytes * candidate.batch * candidate.length)


def search(capacity_bytes, tried, **sizes):
    def compiled(candidate):
        tried.append(candidate)
        peak = needed(candidate, **sizes)
        return (
            Refused("too large")
            if peak > capacity_bytes
            else Compiled(CompiledMemory(peak, 0, 0), 0.0, 0.0, None)
        )

    return FitSearch(
        (64, 32, 16), DTYPES, (8, 4, 2), compiled, lambda c: 0, capacity_bytes, lambda tried: None
    )


@hypothesis.given(st.integers(10, 10**6), st.floats(0.01, 20), st.integers(1, 10**4))
@hypothesis.settings(max_examples=200, deadline=None)
def test_what_is_found_fits_and_more_would_not(capacity_bytes, row_bytes, weights):
    tried = []
    size = {"row_bytes": row_bytes, "weights": weights}
    found = fits.largest(search(capacity_bytes, tried, **size))
    least = Candidate(1, 16, "nf4", 2)
    if found is None:
        assert needed(least, **size) > capacity_bytes
        return
    best = found.candidate
    assert needed(best, **size) == found.peak_bytes <= capacity_bytes
    assert (
        needed(best._replace(batch=best.batch + max(1, best.batch // 16)), **size) > capacity_bytes
    )
    if best.frozen_dtype != "bfloat16":
        above = best._replace(
            batch=1, length=64, rank=8, frozen_dtype=DTYPES[DTYPES.index(best.frozen_dtype) - 1]
        )
        assert needed(above, **size) > capacity_bytes
    assert len(tried) == len(set(tried)) <= 20


def test_few_compilations_where_memory_grows_evenly():
    tried = []
    found = fits.largest(search(100_000, tried))
    assert found.candidate == Candidate(512, 64, "bfloat16", 8)  # of 518 that fit
    assert len(tried) <= 6


@pytest.mark.parametrize(
    ("capacity_bytes", "expected"),
    [
        (480 + 192, Candidate(1, 64, "bfloat16", 8)),
        (480 + 191, Candidate(2, 64, "int8", 8)),
        (180 + 191, Candidate(1, 64, "nf4", 4)),
        (120 + 191, Candidate(1, 32, "nf4", 2)),
        (120 + 47, None),
    ],
)
def test_storage_gives_way_before_rank_and_rank_before_length(capacity_bytes, expected):
    found = fits.largest(search(capacity_bytes, []))
    assert (found and found.candidate) == expected


def test_what_cannot_fit_by_its_state_alone_is_not_compiled():
    tried = []
    asked = search(1000, tried)._replace(
        least_bytes=lambda c: 2000 if c.frozen_dtype == "bfloat16" else 0
    )
    assert fits.largest(asked).candidate.frozen_dtype == "int8"
    assert "bfloat16" not in {candidate.frozen_dtype for candidate in tried}


def test_halvings():
    assert fits.halvings(512, 128) == (512, 256, 128)
    assert fits.halvings(96, 8) == (96, 48, 24, 12)
    assert fits.halvings(4, 8) == (4,)


def test_the_launch_says_what_is_not_as_it_would_be_anyway():
    config = TextConfig(model="opt-1.3b", lora_rank=0, compute_dtype="bfloat16")
    found = launches.configured(config, Candidate(40, 256, "nf4", 0))
    assert launches.command(found) == (
        "snake-jax finetune --model=opt-1.3b --algorithm=snake --frozen_dtype=nf4 "
        "--batch_size=40 "
        "--max_length=256 --lora_rank=0 --compute_dtype=bfloat16 --workdir=runs/opt-1.3b"
    )


def test_the_memory_of_a_described_chip_is_found_by_compiling():
    """15.75 GiB: what its compiler names when it refuses."""
    try:
        (device, *_) = devices("tpu:v5e")
    except UserError as error:
        pytest.skip(str(error))
    assert fits.capacity(device) / 2**30 == pytest.approx(15.75, rel=2e-3)


def test_what_the_user_says_to_this_cpus_compiler_does_not_end_the_one_of_a_described_chip():
    pytest.importorskip("libtpu")
    compiled = (
        "from snake_jax.costs.compiled import devices\n"
        "from snake_jax.profiling import fits\n"
        "print(fits.capacity(devices('tpu:v5e')[0]))"
    )
    flags = {"XLA_FLAGS": "--xla_cpu_use_fusion_emitters=true", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    command = [sys.executable, "-c", compiled]
    done = subprocess.run(
        command, env={**os.environ, **flags}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0
