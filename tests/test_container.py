"""The Containerfile, as far as it can be checked without a builder."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from energylens.cli import build_parser

ROOT = Path(__file__).parents[1]
FILE = ROOT / "deploy" / "Containerfile"
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def stages() -> list[list[tuple[str, str]]]:
    """Instructions and what they say, stage by stage."""
    text = re.sub(r"^#.*\n", "", FILE.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    found: list[list[tuple[str, str]]] = []
    for line in filter(None, map(str.strip, text.splitlines())):
        name, _, rest = line.partition(" ")
        if name == "FROM":
            found.append([])
        found[-1].append((name, re.sub(r"\s+", " ", rest.strip())))
    return found


def said(stage: list[tuple[str, str]], name: str) -> list[str]:
    return [rest for instruction, rest in stage if instruction == name]


def copied() -> list[str]:
    """What the first stage takes from the repository."""
    lines = (shlex.split(rest) for rest in said(stages()[0], "COPY"))
    return [source for *sources, _ in lines for source in sources]


def pip_lines() -> list[list[str]]:
    return [
        words
        for rest in said(stages()[0], "RUN")
        if (words := shlex.split(rest))[0].endswith("pip")
    ]


def test_two_stages_from_images_that_are_pinned_and_new_enough() -> None:
    build, last = stages()
    assert said(build, "FROM")[0].endswith(" AS build")
    for stage in (build, last):
        image = said(stage, "FROM")[0].split()[0]
        tag = re.fullmatch(r"docker\.io/library/python:(3)\.(\d+)-slim", image)
        assert tag, image
        least = re.fullmatch(r">=3\.(\d+)", PROJECT["requires-python"])
        assert least
        assert int(tag[2]) >= int(least[1])
    assert said(build, "FROM")[0].split()[0] == said(last, "FROM")[0]
    [taken] = said(last, "COPY")
    assert taken == "--from=build /opt/venv /opt/venv"
    assert not said(last, "RUN")
    assert not any(said(stage, "ADD") for stage in (build, last))


def test_everything_that_is_copied_is_there_and_all_that_the_build_needs_is_copied() -> None:
    assert all((ROOT / source).exists() for source in copied()), copied()
    needed = {"pyproject.toml", "src", PROJECT["readme"], *PROJECT["license-files"]}
    assert needed <= set(copied())
    workdir = next(k for k, (name, _) in enumerate(stages()[0]) if name == "WORKDIR")
    first = next(k for k, (name, _) in enumerate(stages()[0]) if name == "COPY")
    assert workdir < first


def test_extras_exist_and_nothing_is_left_in_a_cache() -> None:
    [line] = pip_lines()
    assert "--no-cache-dir" in line
    extras = re.fullmatch(r"\.\[(.*)\]", line[-1])
    assert extras
    assert set(extras[1].split(",")) <= set(PROJECT["optional-dependencies"])
    assert {"serve", "watch"} <= set(extras[1].split(","))


def test_it_runs_as_nobody_and_is_told_what_to_do_as_the_command_is() -> None:
    last = stages()[-1]
    [user] = said(last, "USER")
    assert re.fullmatch(r"[1-9]\d*:0", user), "a number that is not root, as Kubernetes checks it"
    [entry], [command] = said(last, "ENTRYPOINT"), said(last, "CMD")
    assert json.loads(entry) == [next(iter(PROJECT["scripts"]))]
    assert json.loads(command) == ["--help"]
    [environment] = said(last, "ENV")
    values = dict(word.split("=", 1) for word in shlex.split(environment))
    assert values["PATH"].startswith("/opt/venv/bin:")
    assert values["HOME"] == "/tmp"  # what nobody may write to
    ports = {word for rest in said(last, "EXPOSE") for word in rest.split()}
    parser = build_parser()
    assert str(parser.parse_args(["serve"]).port) in ports


@pytest.mark.soak
def test_its_lines_install_a_server_in_an_empty_environment(tmp_path: Path) -> None:
    """What RUN says, in a folder with no more than what COPY says: takes a registry."""
    source, venv = tmp_path / "src", tmp_path / "venv"
    source.mkdir()
    for name in copied():
        at = ROOT / name
        (shutil.copytree if at.is_dir() else shutil.copy)(at, source / name)
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    [line] = pip_lines()
    words = [word.replace("/opt/venv", str(venv)) for word in line]
    done = subprocess.run(words, cwd=source, capture_output=True, text=True, check=False)
    if "No matching distribution" in done.stderr or "Temporary failure" in done.stderr:
        pytest.skip("no package registry here")
    assert done.returncode == 0, done.stderr[-2000:]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    program = str(venv / "bin" / "energylens")
    for verb in ("serve", "watch", "meter"):
        helped = subprocess.run(
            [program, verb, "--help"], env=environment, cwd=tmp_path, capture_output=True, text=True
        )
        assert helped.returncode == 0, helped.stderr
    with subprocess.Popen(
        [program, "serve", "--port", "0", "--json"],
        env={**environment, "HOME": str(tmp_path)}, cwd=tmp_path, stdout=subprocess.PIPE, text=True,
    ) as run:  # fmt: skip
        assert run.stdout is not None
        started = ""
        while not started.strip().endswith("}"):
            line_read = run.stdout.readline()
            assert line_read, "the server did not start"
            started += line_read
        assert json.loads(started)["port"] > 0
        run.terminate()
        assert run.wait(timeout=60) == 0
