"""The Dockerfile's instructions, done one after the other in folders instead of an image.

No engine is here. What its build does is done all the same: the same RUN commands, with the
image's paths below a folder of the test, and the program started as the image starts it, as
its user where the tests run as root. What is not seen is the base image.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from testbed import shop

TRAINING = shop.ROOT / "infra" / "training"

pytestmark = pytest.mark.skipif(
    not os.environ.get("TEST_IMAGE"),
    reason="TEST_IMAGE is not set: installs all packages afresh, minutes (make test-image)",
)

IMAGE_PATHS = ("/venv", "/src", "/app", "/tmp")


def instructions(text: str) -> list[tuple[str, str]]:
    """Read a Dockerfile's instructions."""
    lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#")).replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in lines.splitlines() if line.strip()]  # type: ignore[misc]


class Build:
    """A build of an image below a folder."""

    def __init__(self, root: Path, arguments: dict[str, str]) -> None:
        self.root = root
        self.arguments = arguments
        self.env: dict[str, str] = {}
        self.folder = root
        self.user = ""
        self.command: list[str] = []

    def here(self, text: str) -> str:
        """Put the image's paths below the folder."""
        return re.sub(rf"(?<![\w.])({'|'.join(IMAGE_PATHS)})(?![\w])", lambda m: str(self.root) + m[1], text)

    def environment(self) -> dict[str, str]:
        """Give what a process of the image has, with this machine's programs behind the image's own."""
        passed = {k: v for k, v in os.environ.items() if k.startswith("PIP_") or k.lower().endswith("_proxy")}
        return {"PATH": os.environ["PATH"], **passed, **self.arguments, **self.env}

    def stage(self) -> None:
        """Begin a stage: settings are of one, folders of all."""
        self.env, self.folder, self.user = {}, self.root, ""

    def do(self, name: str, rest: str) -> None:  # noqa: PLR0912 one branch an instruction
        """Do one instruction."""
        match name:
            case "ARG":
                key, _, default = rest.partition("=")
                self.arguments.setdefault(key, default)
            case "FROM":
                self.stage()
            case "ENV":
                for part in shlex.split(rest):
                    key, _, value = part.partition("=")
                    self.env[key] = self.here(value).replace("$PATH", self.environment()["PATH"])
            case "WORKDIR":
                self.folder = Path(self.here(rest))
                self.folder.mkdir(parents=True, exist_ok=True)
            case "COPY" if rest.startswith("--from="):
                source, target = rest.split()[1:]
                assert source == target, "stages share their folders here"
            case "COPY":
                *sources, target = shlex.split(rest)
                for source in sources:
                    to = self.folder if target == "./" else Path(self.here(target))
                    if (TRAINING / source).is_dir():
                        shutil.copytree(TRAINING / source, to, ignore=shutil.ignore_patterns("__pycache__"))
                    else:
                        shutil.copy(TRAINING / source, to)
            case "RUN":
                got = subprocess.run(
                    ["/bin/sh", "-c", self.here(rest)], cwd=self.folder, env=self.environment(),
                    capture_output=True, text=True, check=False,
                )  # fmt: skip
                assert got.returncode == 0, f"RUN {rest}: {got.stdout[-2000:]}{got.stderr[-2000:]}"
            case "USER":
                self.user = rest
            case "CMD":
                self.command = json.loads(rest)
            case _:
                pytest.fail(f"{name} is not known to this test")


def user(build: Build, env: dict[str, str]) -> dict[str, Any]:
    """Give how a process is started as the image's user, where this one may and Python is for all to run."""
    if os.getuid() != 0:
        return {}
    number = int(build.user.partition(":")[0])
    who = {"user": number, "group": number, "extra_groups": []}
    try:
        subprocess.run(["python", "-c", ""], cwd=build.folder, env=env, check=True, **who)
    except (PermissionError, subprocess.CalledProcessError):
        return {}
    return who


def test_what_the_dockerfile_says_can_be_done(tmp_path: Path) -> None:
    build = Build(tmp_path / "root", {})
    build.root.mkdir()
    for name, rest in instructions((TRAINING / "Dockerfile").read_text(encoding="utf-8")):
        if name == "RUN" and rest.startswith("python "):
            rest = "python3 " + rest.removeprefix("python ")  # noqa: PLW2901 the base image has both names
        build.do(name, rest)

    assert build.user == "65532:65532"
    for folder in (build.root, *build.root.parents):
        if folder.stat().st_uid == os.getuid() and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o011)
    (build.root / "tmp").chmod(0o777)
    env = build.environment()
    who = user(build, env)
    # As a Job: it says what is wrong with its request and fails, which wants all of its packages.
    asked = {
        "specversion": "1.0",
        "id": "1",
        "source": "/test",
        "type": "dev.millrace.training.requested.v1",
        "data": {"trials": 0},
    }
    event = build.root / "tmp" / "event"
    event.write_text(json.dumps(asked))
    env["K_EVENT_PATH"] = str(event.parent)
    got = subprocess.run(build.command, cwd=build.folder, env=env, capture_output=True, text=True, check=False, **who)
    assert got.returncode == 1, got.stderr[-2000:]
    told = json.loads(got.stdout)
    assert (told["type"], told["data"]["reason"]) == ("dev.millrace.training.failed.v1", "bad_request")
    assert "trials: 0 is not" in told["data"]["message"]
    # What the deployment of MLflow runs from the same image.
    got = subprocess.run(
        ["mlflow", "--version"], cwd=build.folder, env=env, capture_output=True, text=True, check=False, **who
    )  # type: ignore[call-overload]
    assert got.returncode == 0, got.stderr[-2000:]
