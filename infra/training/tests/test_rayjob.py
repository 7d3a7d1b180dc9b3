"""The RayJob's own command, environment and Ray parameters, on a Ray cluster of this machine.

KubeRay would start the head and the workers as ``ray start`` with the manifest's
rayStartParams, wait for their probes, and submit the entrypoint to the head's API; so does
this. Hosts are loopback and ports are free ones; what secrets hold is what runs here.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from botocore.exceptions import BotoCoreError
from mlflow import MlflowClient

from millrace_training import events
from testbed import shop
from tests.conftest import Sink
from tests.test_registry import MODEL, mlflow  # noqa: F401 a fixture

pytestmark = pytest.mark.skipif(
    not os.environ.get("TEST_RAYJOB"), reason="TEST_RAYJOB is not set: starts a whole Ray cluster (make test-ray)"
)

SPEC: Any = yaml.safe_load((shop.ROOT / "infra" / "ray" / "rayjob.yaml").read_text(encoding="utf-8"))["spec"]
RAY = str(Path(sys.executable).parent / "ray")
RUNNER = shop.ROOT / ".local" / "bin" / "millrace"
PATIENCE = 900  # seconds; a cluster comes up in a few on a machine with nothing else to do


def free_port() -> int:
    """Find a port that nobody listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


def container(group: Any) -> Any:
    return group["template"]["spec"]["containers"][0]


def environment(group: Any, secrets: dict[str, str], hosts: dict[str, str]) -> dict[str, str]:
    """Make the variables that a container has, each host of the cluster being one of this machine."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    given = {**os.environ, "PATH": path, "PYTHONPATH": str(shop.ROOT / "infra" / "training"), "PYTHONUNBUFFERED": "1"}
    for name in [
        n for n in given if n.startswith(("RAY_", "TRAINING_", "AWS_", "MLFLOW_")) or n in ("K_SINK", "DATABASE_URL")
    ]:
        del given[name]
    for e in container(group)["env"]:
        if "value" not in e:
            ref = e["valueFrom"]["secretKeyRef"]
            given[e["name"]] = secrets[f"{ref['name']}/{ref['key']}"]
            continue
        value = e["value"]
        for host, here in hosts.items():
            value = value.replace(host, here)
        assert ".svc" not in value, f"{e['name']}: {value} is of no cluster here"
        given[e["name"]] = value
    patient = {  # the API is given up by default when it takes a busy machine half a minute
        "RAY_DASHBOARD_STARTUP_TIMEOUT_S": str(PATIENCE),
        "RAY_DASHBOARD_SUBPROCESS_MODULE_WAIT_READY_TIMEOUT": str(PATIENCE),
    }
    return given | {"AWS_EC2_METADATA_DISABLED": "true"} | patient


def until(what: str, ask: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not ask():
        assert time.monotonic() < deadline, what
        time.sleep(0.5)


def well(command: list[str], env: dict[str, str]) -> bool:
    """Ask a probe of the manifest."""
    return subprocess.run(command, env=env, capture_output=True, check=False).returncode == 0


def asked(url: str, data: object = None) -> Any:
    body = None if data is None else json.dumps(data).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)
    except urllib.error.HTTPError as e:
        e.add_note(e.read().decode(errors="replace")[-3000:])
        raise


@pytest.fixture
def store(tmp_path: Path) -> Iterator[str]:
    """The address of an S3 that has the bucket which the manifest wants."""
    port = free_port()
    env = {**os.environ, "S3_ACCESS_KEY": "millrace", "S3_SECRET_KEY": "millrace-secret"}
    command = [str(RUNNER), "s3", "--port", str(port), "--data", str(tmp_path / "s3")]
    with subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL) as process:
        s3 = boto3.client(
            "s3", endpoint_url=f"http://127.0.0.1:{port}", region_name="us-east-1",
            aws_access_key_id="millrace", aws_secret_access_key="millrace-secret",
        )  # fmt: skip

        def made() -> bool:
            try:
                s3.create_bucket(Bucket="millrace-ray")
            except BotoCoreError:
                return False
            return True

        until("the object store", made)
        yield f"127.0.0.1:{port}"
        process.terminate()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., None]]:
    """Start a node of a cluster, and kill it with all that it started."""
    processes: list[subprocess.Popen[bytes]] = []

    def begin(name: str, env: dict[str, str], *flags: str) -> None:
        with (tmp_path / f"{name}.log").open("wb") as log:
            command = [RAY, "start", "--block", "--node-ip-address", "127.0.0.1", *flags]
            process = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
        processes.append(process)

        def runs() -> bool:
            text = (tmp_path / f"{name}.log").read_text()
            assert process.poll() is None, text[-3000:]
            return "Ray runtime started" in text

        # Nodes of one machine share a folder, and must not be made in it at the same time.
        until(f"{name} runs", runs)

    yield begin
    for p in processes:
        os.killpg(p.pid, signal.SIGTERM)
        p.wait()


def test_the_entrypoint_trains_on_a_cluster_as_the_manifest_says(
    warehouse: str, sink: Sink, store: str, mlflow: str, start: Callable[..., None]  # noqa: F811
) -> None:  # fmt: skip
    head, workers = SPEC["rayClusterSpec"]["headGroupSpec"], SPEC["rayClusterSpec"]["workerGroupSpecs"][0]
    secrets = {
        "millrace-postgres/url": warehouse, "millrace-s3/access-key": "millrace", "millrace-s3/secret-key": "millrace-secret",
    }  # fmt: skip
    hosts = {
        "http://mlflow.millrace.svc.cluster.local:5000": mlflow,
        "http://broker-ingress.knative-eventing.svc.cluster.local/millrace/default": sink.url,
        "minio.millrace.svc:9000": store,
    }
    gcs, api = free_port(), free_port()
    env = environment(head, secrets, hosts)
    with tempfile.TemporaryDirectory(prefix="mr", dir="/tmp", ignore_cleanup_errors=True) as folder:
        parameters = {**head["rayStartParams"], "dashboard-host": "127.0.0.1"}
        start(
            "head", env, "--head", f"--port={gcs}", f"--dashboard-port={api}", f"--temp-dir={folder}",
            f"--dashboard-agent-listen-port={free_port()}", *(f"--{k}={v}" for k, v in parameters.items()),
        )  # fmt: skip
        probe = [a.replace("6379", str(gcs)) for a in container(head)["readinessProbe"]["exec"]["command"]]
        until("the head's probe", lambda: well(probe, env))
        for i in range(workers["replicas"]):
            agent, env_worker = free_port(), environment(workers, secrets, hosts)
            start(
                f"worker{i}", env_worker, f"--address=127.0.0.1:{gcs}", f"--dashboard-agent-listen-port={agent}",
                *(f"--{k}={v}" for k, v in workers["rayStartParams"].items()),
            )  # fmt: skip
            probe = [a.replace("52365", str(agent)) for a in container(workers)["readinessProbe"]["exec"]["command"]]
            until("a worker's probe", lambda probe=probe, env=env_worker: well(probe, env))  # type: ignore[misc]

        # What submissionMode HTTPMode does.
        jobs = f"http://127.0.0.1:{api}/api/jobs/"

        def answers() -> bool:
            try:
                return asked(jobs) is not None
            except OSError:
                return False

        until("the head's API", answers)
        told: dict[str, Any] = {}

        def taken() -> bool:
            try:
                told.update(asked(jobs, {"entrypoint": SPEC["entrypoint"], "submission_id": "millrace-1"}))
            except urllib.error.HTTPError as e:
                # As KubeRay does: the head knows its agent some seconds after it answers.
                if "try again later" in "".join(e.__notes__):
                    return False
                raise
            return True

        until("the job is taken", taken)
        state: dict[str, Any] = {}

        def ended() -> bool:
            state.update(asked(jobs + told["submission_id"]))
            return state["status"] in ("SUCCEEDED", "FAILED", "STOPPED")

        until("the job ends", ended)
        assert state["status"] == "SUCCEEDED", asked(jobs + told["submission_id"] + "/logs")["logs"][-3000:]

    headers, body = sink.got[-1]
    report = json.loads(body)
    assert headers["ce-type"] == events.COMPLETED
    assert report["trials"] == 20
    version = MlflowClient(mlflow, mlflow).get_model_version(MODEL, report["version"])
    assert version.tags["digest"] == report["digest"]
    # Trials and the final model were left where every node reaches them.
    left = boto3.client(
        "s3", endpoint_url=f"http://{store}", region_name="us-east-1",
        aws_access_key_id="millrace", aws_secret_access_key="millrace-secret",
    ).list_objects_v2(Bucket="millrace-ray", Prefix="training/")  # fmt: skip
    names = {o["Key"].split("/")[1] for o in left["Contents"]}
    assert {"search", "final"} <= names
