"""The lock file holds what the tests need, each by its hash."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PINNED = re.compile(r"^([A-Za-z0-9._-]+)==(\S+?)(?: ;.*)?(?: \\\\)?$")


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.fixture(scope="module")
def locked() -> dict[str, str]:
    text = (ROOT / "requirements" / "test.lock").read_text()
    entries = re.split(r"\n(?=[A-Za-z0-9])", text)
    found = {}
    for entry in entries:
        first = PINNED.match(entry.splitlines()[0].removesuffix(" \\"))
        assert first, entry[:80]
        assert "--hash=sha256:" in entry, entry[:80]
        found[normal(first[1])] = first[2]
    return found


def wanted(extra: str) -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    found = []
    for text in extras[extra]:
        requirement = Requirement(text)
        if requirement.name == "energylens":
            found += [one for name in requirement.extras for one in wanted(name)]
        else:
            found.append(requirement)
    return found + [Requirement(text) for text in project["dependencies"]]


def test_what_the_tests_need_is_locked_within_its_bounds(locked: dict[str, str]) -> None:
    for requirement in wanted("test"):
        version = locked.get(normal(requirement.name))
        assert version is not None, (
            f"make lock: {requirement.name} is not in requirements/test.lock"
        )
        assert requirement.specifier.contains(version), (requirement, version)
