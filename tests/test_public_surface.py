"""What a stranger meets first: light imports, and words on every public name."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import energylens

PACKAGE = Path(energylens.__file__).parent
HEAVY = (
    "numpy",
    "scipy",
    "pydantic",
    "sklearn",
    "xgboost",
    "lightgbm",
    "pyarrow",
    "matplotlib",
    "vl_convert",
    "latex2mathml",
    "jinja2",
    "torch",
    "vllm",
    "transformers",
)


def loaded_by(code: str) -> set[str]:
    """Run code in a fresh Python, and say which packages it imported."""
    report = "import json, sys; print(json.dumps(sorted({m.partition('.')[0] for m in sys.modules})), file=sys.stderr)"  # noqa: E501
    program = f"try:\n    {code}\nexcept SystemExit:\n    pass\n{report}"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=600, check=True
    )
    return set(json.loads(done.stderr))


@pytest.mark.parametrize(
    "code",
    [
        "import energylens",
        "import energylens.door, energylens.viewing",
        "import energylens.errors, energylens.records",
        "from energylens.cli import main; main(['--help'])",
        "from energylens.cli import main; main(['evaluate', '--help'])",
    ],
)
def test_nothing_heavy_is_imported_to_begin_with(code):
    assert not loaded_by(code) & set(HEAVY)


@pytest.mark.parametrize(
    ("code", "allowed"),
    [
        # The law itself is numpy and nothing else: predicting needs no solver, no file format.
        (
            "import energylens.fitting, energylens.selection, energylens.evaluation.judge, "
            "energylens.table, energylens.importers, energylens.instrument.sweep",
            {"numpy"},
        ),
        ("import energylens.modelfile", {"numpy", "pydantic"}),
        ("import energylens.baselines", {"numpy", "scipy"}),
    ],
)
def test_each_room_imports_only_what_it_stands_on(code, allowed):
    assert loaded_by(code) & set(HEAVY) <= allowed


def public_names(tree: ast.Module):
    """Every function, class and method that a user may call, with its node."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            if node.name.startswith("_"):
                continue
            yield node.name, node
            if isinstance(node, ast.ClassDef):
                for member in node.body:
                    if isinstance(member, ast.FunctionDef) and not member.name.startswith("_"):
                        yield f"{node.name}.{member.name}", member


MODULES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_every_public_name_has_a_docstring(module):
    tree = ast.parse((PACKAGE / module).read_text(encoding="utf-8"))
    assert ast.get_docstring(tree) or not tree.body, "the module has none"
    bare = [
        name
        for name, node in public_names(tree)
        if not ast.get_docstring(node)
        and not any(ast.unparse(d).endswith(("overload", "setter")) for d in node.decorator_list)
    ]
    assert not bare


def test_the_package_says_what_it_is_and_its_version():
    assert energylens.__doc__
    assert energylens.__version__.count(".") == 2
    assert (PACKAGE / "py.typed").exists()


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_no_room_is_called_after_nothing(module):
    assert not {"utils", "helpers", "common", "misc"} & set(module.with_suffix("").parts)
