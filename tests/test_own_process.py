"""A crash in a test of its own process is one failed test, and the others run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

INNER = """
    import os
    import signal

    import pytest

    pytestmark = pytest.mark.own_process


    @pytest.fixture
    def folder(tmp_path):
        yield tmp_path


    def test_before(folder):
        assert folder.is_dir()


    def test_an_engine_dies_of_an_instruction():
        os.kill(os.getpid(), signal.SIGILL)


    def test_an_engine_exits():
        os._exit(7)


    def test_is_wrong():
        assert 1 == 2


    def test_cannot():
        pytest.skip("this processor has no AMX")


    def test_after(folder):
        assert os.getppid() > 1
"""


def test_a_crash_is_one_failed_test_with_its_reason(tmp_path: Path) -> None:
    import textwrap

    (tmp_path / "test_inner.py").write_text(textwrap.dedent(INNER))
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    own_process: x\n")
    here = Path(__file__).parent
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "own_process", "-p", "no:cacheprovider"),
            *("-c", str(tmp_path / "pytest.ini"), "-rs", str(tmp_path)),
        ],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(here), "PATH": "/usr/bin:/bin"},
        cwd=tmp_path,
        check=False,
    )
    assert "3 failed, 2 passed, 1 skipped" in done.stdout, done.stdout + done.stderr
    assert "was ended by SIGILL" in done.stdout
    assert "ended with status 7" in done.stdout
    assert "this processor has no AMX" in done.stdout
    assert done.returncode == 1
