"""Tests marked ``own_process`` run in a child process: a crash there is one failed test.

An engine that dies of an illegal instruction, or is killed for its memory, would else end the
whole run, with every test after it untold. A plugin of pytest, loaded by ``conftest.py``. What the
marker names (``own_process("torch")``) is imported once, before the first such process.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import warnings

import pytest
from _pytest.runner import runtestprotocol


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    marker = item.get_closest_marker("own_process")
    skipped = any(mark.args and mark.args[0] for mark in item.iter_markers("skipif"))
    if marker is None or skipped or not hasattr(os, "fork"):
        return None
    for name in marker.args:
        with warnings.catch_warnings(), contextlib.suppress(ImportError):
            warnings.simplefilter("ignore")
            importlib.import_module(name)
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in _reports_of_child(item):
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def _reports_of_child(item: pytest.Item) -> list[pytest.TestReport]:
    hook = item.config.hook
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(reading)
            # No next item: every fixture is torn down here, in the process that made it.
            reports = runtestprotocol(item, log=False, nextitem=None)
            told = [
                hook.pytest_report_to_serializable(config=item.config, report=report)
                for report in reports
            ]
            with os.fdopen(writing, "w") as pipe:
                json.dump(told, pipe)
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        told = pipe.read()
    _, state = os.waitpid(child, 0)
    if told and state == 0:
        reports = [
            hook.pytest_report_from_serializable(config=item.config, data=data)
            for data in json.loads(told)
        ]
        for report in reports:
            if isinstance(report.longrepr, list):  # JSON has no tuples: where a test skipped
                report.longrepr = tuple(report.longrepr)
        return reports
    return [_crashed(item, os.waitstatus_to_exitcode(state))]


def _crashed(item: pytest.Item, status: int) -> pytest.TestReport:
    how = f"ended with status {status}"
    if status < 0:
        how = f"was ended by {signal.Signals(-status).name} ({signal.strsignal(-status)})"
    return pytest.TestReport(
        nodeid=item.nodeid,
        location=item.location,
        keywords=dict.fromkeys(item.keywords, 1),
        outcome="failed",
        longrepr=f"the process of this test {how}",
        when="call",
    )
