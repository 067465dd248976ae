"""Benchmarks of the kernels: `python -m experiments.bench.kernels SUITE`.

  python -m experiments.bench.kernels conv           every pass of VGG-11's convolutions, timed here
  python -m experiments.bench.kernels distill_xent   the loss of a language model and its teacher
  python -m experiments.bench.kernels quant_matmul   products with int8 and nf4 weights

Each suite is a module here: `run(repeats)` measures and `report(result)` says it in text
(`*_tables.py`). `--json` prints the result as experiments/results/kernels/ has it. The last two
also compile for TPUs that are not here and tell what the compiler says of them (`described.py`);
where its package is missing, that part says so and is left out.
"""
