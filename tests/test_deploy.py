"""The files of docs/deploy, and BUILD.md's commands: sound by what can be asked offline."""

import json
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import yaml

from snake_jax.cli import main, preemption
from snake_jax.cli.commands import COMMANDS, config_flags
from snake_jax.config import ImageConfig, TextConfig
from snake_jax.engines.choice import resources

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "docs" / "deploy"
SERVICE, JOB = yaml.safe_load_all((DEPLOY / "finetune_gke.yaml").read_text())
POD = JOB["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]


@pytest.mark.parametrize("manifest", [SERVICE, JOB], ids=lambda manifest: manifest["kind"])
def test_manifests_are_what_kubernetes_takes(manifest):
    schemas = pytest.importorskip(
        "kubernetes_validate", reason="the schemas of Kubernetes are not installed"
    )
    schemas.validate(manifest, schemas.latest_version(), strict=True)
    with pytest.raises(schemas.ValidationError):
        schemas.validate(
            {**manifest, "spec": {**manifest["spec"], "colour": "red"}},
            schemas.latest_version(),
            strict=True,
        )


def parsed(name, flag_list):
    """The flags that the command reads from these words."""
    values = main.define(COMMANDS[name])
    assert main.parse(COMMANDS[name], values, [name, *flag_list]) == [name], "nothing but flags"
    return values


def configuration(flag_list):
    """That of a fine-tuning run with these flags, and all its flags."""
    values = parsed("finetune", flag_list)
    return config_flags.from_flags(values, TextConfig), values


def test_the_job_starts_a_launch_with_flags_that_it_has():
    command, *flag_list = CONTAINER["args"]
    assert command == "finetune"
    config, others = configuration(flag_list)
    assert others.distributed
    assert others.workdir.startswith("gs://")
    assert config.algorithm == "snake"


def test_the_job_is_one_pod_for_each_host_of_its_slice():
    spec, chips = JOB["spec"], CONTAINER["resources"]["limits"]["google.com/tpu"]
    rows, columns = map(int, POD["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"))
    assert spec["completions"] == spec["parallelism"] == rows * columns // chips
    assert CONTAINER["resources"]["requests"] == CONTAINER["resources"]["limits"]
    config, _ = configuration(CONTAINER["args"][1:])
    assert config.mesh == f"fsdp:{rows * columns}"


def test_the_pods_find_each_other():
    assert POD["subdomain"] == SERVICE["metadata"]["name"]
    assert SERVICE["spec"]["selector"] == {"job-name": JOB["metadata"]["name"]}
    assert SERVICE["spec"]["clusterIP"] == "None"


def test_the_pod_is_left_as_long_as_a_terminated_launch_may_take():
    _, others = configuration(CONTAINER["args"][1:])
    assert others.grace_s < POD["terminationGracePeriodSeconds"]
    ignored = [
        rule["onExitCodes"]["values"]
        for rule in JOB["spec"]["podFailurePolicy"]["rules"]
        if "onExitCodes" in rule
    ]
    assert ignored == [[2], [preemption.CODE]]


def test_the_image_has_all_that_the_library_is_made_of():
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()
    copied = {
        name for line in lines if line.startswith("COPY ") for name in shlex.split(line)[1:-1]
    }
    assert all((ROOT / name).exists() for name in copied)
    assert {"snake_jax", "kernels", "pyproject.toml", "README.md", "LICENSE"} <= copied
    assert 'ENTRYPOINT ["snake-jax"]' in lines


def test_commands_in_the_instructions_have_flags_that_there_are():
    text = (ROOT / "BUILD.md").read_text().replace("\\\n", " ")
    found = re.findall(r"""snake-jax (\w+) (--[^'"\n]*)""", text)
    assert len(found) >= 5
    for name, flag_list in found:
        values = parsed(name, shlex.split(flag_list))
        kind = {"classify": ImageConfig, "finetune": TextConfig}.get(name)
        if kind is not None:
            config_flags.from_flags(values, kind)


# The job of KubeRay, by the schema of its operator; its pods by Kubernetes' own

RAY_JOB = yaml.safe_load((DEPLOY / "ray_gke.yaml").read_text())
RAY_CLUSTER = RAY_JOB["spec"]["rayClusterSpec"]
RAY_GROUPS = [RAY_CLUSTER["headGroupSpec"], *RAY_CLUSTER["workerGroupSpecs"]]


def test_the_ray_job_is_what_its_operator_takes():
    """By the definition of the pinned version, in which fields that are unknown are refused."""
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    golden = Path(__file__).parent / "golden" / "kuberay_rayjob_v1.7.0.json"
    validator = jsonschema.Draft202012Validator(json.loads(golden.read_text()))
    validator.validate(RAY_JOB)
    spec, cluster = RAY_JOB["spec"], RAY_CLUSTER
    for wrong in (
        {"colour": "red"},
        {"backoffLimit": "three"},
        {"rayClusterSpec": {**cluster, "rayversion": "2"}},
        {"rayClusterSpec": {**cluster, "authOptions": {"mode": "tokens"}}},
        {"rayClusterSpec": {**cluster, "workerGroupSpecs": [{"groupName": "nodes"}]}},
    ):
        with pytest.raises(jsonschema.ValidationError):
            validator.validate({**RAY_JOB, "spec": {**spec, **wrong}})


@pytest.mark.parametrize("group", RAY_GROUPS, ids=["head", "nodes"])
def test_pods_of_ray_are_what_kubernetes_takes(group):
    schemas = pytest.importorskip(
        "kubernetes_validate", reason="the schemas of Kubernetes are not installed"
    )
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, **group["template"]}
    schemas.validate(pod, schemas.latest_version(), strict=True)
    wrong = {**pod, "spec": {**pod["spec"], "colour": "red"}}
    with pytest.raises(schemas.ValidationError):
        schemas.validate(wrong, schemas.latest_version(), strict=True)


def test_the_ray_job_starts_a_launch_whose_processes_fit_its_pods():
    command, name, *flag_list = shlex.split(RAY_JOB["spec"]["entrypoint"])
    assert (command, name) == ("snake-jax", "classify")
    values = parsed(name, flag_list)
    config = config_flags.from_flags(values, ImageConfig)
    (nodes,) = RAY_CLUSTER["workerGroupSpecs"]
    offered = json.loads(json.loads(nodes["rayStartParams"]["resources"]))
    assert offered == resources(values.ray_resources)
    assert values.ray_actors == nodes["replicas"] == config.nodes
    assert (values.engine, values.ray_address) == ("ray", "auto")


def test_the_cluster_s_ray_is_the_one_that_is_installed():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    assert extras["ray"] == [f"ray=={RAY_CLUSTER['rayVersion']}"]
