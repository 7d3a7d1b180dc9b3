"""What runs the trainer elsewhere: the RayJob against KubeRay's schema, and the image's recipe."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from testbed import shop

TRAINING = shop.ROOT / "infra" / "training"
RAYJOB = shop.ROOT / "infra" / "ray" / "rayjob.yaml"
KUBERAY = "github.com/ray-project/kuberay/ray-operator@v1.5.1"


def strict(schema: Any) -> Any:
    """Refuse fields that the schema does not know, as the API server does when it is asked to be strict."""
    if isinstance(schema, list):
        return [strict(s) for s in schema]
    if not isinstance(schema, dict):
        return schema
    made = {k: strict(v) for k, v in schema.items()}
    if isinstance(made.get("properties"), dict) and "additionalProperties" not in made:
        made["additionalProperties"] = bool(made.get("x-kubernetes-preserve-unknown-fields"))
    if made.pop("x-kubernetes-int-or-string", False):
        made.pop("type", None)
        made["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    return made


@pytest.fixture(scope="module")
def job() -> Any:
    return yaml.safe_load(RAYJOB.read_text(encoding="utf-8"))


def test_the_job_is_one_that_kuberay_takes(job: Any, tmp_path: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    if not (go := shutil.which("go")):
        pytest.skip("there is no go on the PATH, by which KubeRay's definitions are had")
    got = subprocess.run(
        [go, "mod", "download", "-json", KUBERAY], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    if got.returncode != 0:
        pytest.skip(f"KubeRay's definitions cannot be had here: {got.stderr[-300:]}")
    definition = Path(json.loads(got.stdout)["Dir"]) / "config" / "crd" / "bases" / "ray.io_rayjobs.yaml"
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    raw = yaml.load(definition.read_bytes(), loader)
    schema = next(v["schema"]["openAPIV3Schema"] for v in raw["spec"]["versions"] if v["name"] == "v1")
    schema["properties"].pop("metadata")
    validator = jsonschema.Draft202012Validator(strict(schema))
    without = {k: v for k, v in job.items() if k != "metadata"}
    assert [f"{'.'.join(map(str, e.absolute_path))}: {e.message}" for e in validator.iter_errors(without)] == []

    without["spec"]["rayClusterSpec"]["headGroupSpec"]["templates"] = {}
    assert any("templates" in e.message for e in validator.iter_errors(without)), "the check finds a wrong field"


def test_the_job_is_of_the_pinned_ray_and_of_what_there_is(job: Any) -> None:
    pinned = re.search(r"^ray==(.+)$", (TRAINING / "requirements-ray.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    spec = job["spec"]["rayClusterSpec"]
    assert spec["rayVersion"] == pinned[1]
    workers = spec["workerGroupSpecs"][0]
    head = spec["headGroupSpec"]["template"]["spec"]["containers"][0]
    environment = {e["name"]: e.get("value") for e in head["env"]}
    assert int(environment["TRAINING_WORKERS"]) == workers["replicas"] * int(workers["rayStartParams"]["num-cpus"])
    for container in (head, workers["template"]["spec"]["containers"][0]):
        assert container["securityContext"]["runAsNonRoot"] is True
        assert not any("value" in e and re.search("KEY|PASSWORD|DATABASE_URL", e["name"]) for e in container["env"])
    flags = job["spec"]["entrypoint"].split("millrace_training ")[1].split()
    from millrace_training.cli import _parser  # noqa: PLC0415

    assert _parser().parse_args(flags).backend == "ray"


def test_the_image_is_made_of_what_is_there_and_pinned() -> None:
    text = (TRAINING / "Dockerfile").read_text(encoding="utf-8")
    for line in re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE):
        for source in line.split():
            assert (TRAINING / source).exists(), source
    assert re.search(r"^ARG PYTHON=\d+\.\d+\.\d+-", text, re.MULTILINE)
    assert all("${PYTHON}" in line for line in re.findall(r"^FROM (.+)$", text, re.MULTILINE))
    assert re.findall(r"^USER (.+)$", text, re.MULTILINE) == ["65532:65532"]
