"""A model of a newer family from flags to peft: trained, killed, gone on with, exported."""

import json
import multiprocessing
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from snake_jax.cli import one_run
from snake_jax.models.hub import load_pretrained
from tests.cli.test_finetune import SMALL, launch_and_die, peft_warns
from tests.launches import Launcher, results, write_model, write_pairs

pytestmark = pytest.mark.usefixtures("quick_compilation")

ADAPTERS = ("--lora_rank=4", "--frozen_dtype=int8", "--cycles=2", "--save=both")


@peft_warns
@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "kind"), [("tiny-qwen3", "qwen3"), ("tiny-gemma3", "gemma3_text")]
)
def test_a_newer_model_is_trained_killed_gone_on_with_and_loaded_by_peft(
    preset, kind, tmp_path, monkeypatch, capfd
):
    monkeypatch.setattr(one_run, "draw_curves", lambda run, picture: None)
    base = write_model(tmp_path / "model", preset)
    write_pairs(tmp_path / "pairs.jsonl")
    flags = (
        *SMALL,
        *ADAPTERS,
        f"--model={base}",
        f"--data={tmp_path / 'pairs.jsonl'}",
        f"--compilation_cache_dir={tmp_path / 'cache'}",
    )
    run = Launcher(monkeypatch, capfd, "finetune")
    unbroken, folder = tmp_path / "unbroken", tmp_path / "run"
    ended = run(*flags, f"--workdir={unbroken}")
    assert (ended.code, ended.stderr) == (0, "")

    # Killed after two lines; the same command goes on and ends as the run that nothing happened to.
    flag_list = (*flags, f"--workdir={folder}")
    context = multiprocessing.get_context("forkserver")
    process = context.Process(target=launch_and_die, args=(flag_list, folder / "metrics.jsonl", 2))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    assert run(*flag_list).code == 0
    assert results(folder) == results(unbroken)

    # What was exported, here and in peft.
    merged, params = load_pretrained(folder / "model")
    assert json.loads((folder / "model" / "config.json").read_text())["model_type"] == kind
    ids = np.random.default_rng(0).integers(0, 256, (2, 20), np.int32)
    logits = np.asarray(jax.jit(merged.apply)(jax.tree.map(jnp.asarray, params), ids))
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    plain = model.eval()(torch.from_numpy(ids.astype(np.int64))).logits.detach().numpy()
    model = peft.PeftModel.from_pretrained(model, folder / "adapter").eval()
    with torch.no_grad():
        there = model(torch.from_numpy(ids.astype(np.int64))).logits.numpy()
    np.testing.assert_allclose(there, logits, rtol=1e-3, atol=1e-4)
    assert np.abs(there - plain).max() > 0.05
