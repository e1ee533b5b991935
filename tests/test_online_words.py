"""The decision in the words of schedulers: Ray Serve, KEDA, Prometheus, llm-d's router."""

from __future__ import annotations

import json
import math
import re
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from energylens.online.actuators import Consent, Hand, make
from energylens.online.controller import Advice
from energylens.online.fleet import Setting
from energylens.online.ray_policy import VARIABLE, replicas, wanted
from energylens.online.rehearsal import Action
from energylens.online.showing import Board
from energylens.scraping import parse

PAGE = Path(__file__).parents[1] / "docs" / "online.md"


@dataclass
class Context:
    """The fields of Ray's AutoscalingContext that a policy reads."""

    target_num_replicas: int = 3
    capacity_adjusted_min_replicas: int = 1
    capacity_adjusted_max_replicas: int = 6


def test_ray_follows_the_file_within_its_bounds_while_it_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "replicas.json"
    monkeypatch.delenv(VARIABLE, raising=False)
    assert replicas(Context()) == (3, {})
    monkeypatch.setenv(VARIABLE, str(path))
    assert replicas(Context()) == (3, {})
    consent = Consent(actuator="ray", targets=frozenset([str(path)]), low=1, high=100)
    with Hand(make("ray"), consent) as hand:
        hand.act(str(path), 5.0, {})
        assert replicas(Context()) == (5, {})
        hand.act(str(path), 50.0, {})
        assert replicas(Context()) == (6, {})
    assert replicas(Context()) == (3, {})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"replicas": 2}',
        '{"replicas": "2", "expires_at_s": 9e9}',
        '{"replicas": true, "expires_at_s": 9e9}',
        '{"replicas": 0, "expires_at_s": 9e9}',
        '{"replicas": 2, "expires_at_s": 5}',
        '{"replicas": 2, "expires_at_s": NaN}',
        '{"replicas": 2, "expires_at_s": "never"}',
    ],
)
def test_a_file_that_ran_out_or_makes_no_sense_asks_for_nothing(tmp_path: Path, text: str) -> None:
    path = tmp_path / "replicas.json"
    path.write_text(text)
    assert wanted(path, time.time()) is None


def test_ray_takes_the_policy_by_its_name() -> None:
    config = pytest.importorskip("ray.serve.config", reason="Ray Serve is not installed")
    name = "energylens.online.ray_policy:replicas"
    policy = config.AutoscalingPolicy(policy_function=name)
    assert policy.get_policy()(Context()) == (3, {})


def advice() -> Advice:
    return Advice(
        at_s=1.0,
        action=Action(replicas=2, batch_limit=128, fill=40, setting=Setting(500.0)),
        doubt="",
        reason={
            "rate_per_s": 2.0, "upper_rate_per_s": 4.0, "power_now_w": 900.0,
            "power_then_w": 700.0, "saved_per_request_j": 100.0, "ttft_ms": 300.0, "tpot_ms": 20.0,
        },
    )  # fmt: skip


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_the_board_is_what_keda_and_prometheus_read() -> None:
    board = Board("127.0.0.1", 0)
    try:
        for path in ("/v1/fleet", "/metrics"):
            assert get(board.url + path)[0] == 503
        board.advice = Advice(at_s=0.0, action=None, doubt="no engine shows its metrics", reason={})
        assert get(board.url + "/v1/fleet")[0] == 503
        board.advice = advice()
        status, text = get(board.url + "/v1/fleet")
        assert status == 200
        value: Any = json.loads(text)
        for part in keda()["valueLocation"].split("."):
            value = value[part]
        assert value == 2
        status, text = get(board.url + "/metrics")
        assert status == 200
        series = {s.name: s.value for s in parse(text, ("energylens_",), "the board")}
        assert series["energylens_fleet_replicas"] == 2
        assert series["energylens_fleet_power_watts"] == 700
        assert all(math.isfinite(v) for v in series.values())
        assert get(board.url + "/else")[0] == 404
    finally:
        board.shutdown()
        board.server_close()


def blocks() -> list[Any]:
    yaml = pytest.importorskip("yaml")
    text = PAGE.read_text(encoding="utf-8")
    return [yaml.safe_load(b) for b in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)]


def keda() -> dict[str, str]:
    found = next(b for b in blocks() if "triggers" in b)
    metadata: dict[str, str] = found["triggers"][0]["metadata"]
    return metadata


def test_the_recipes_have_the_fields_that_their_readers_know() -> None:
    trigger = next(b for b in blocks() if "triggers" in b)["triggers"][0]
    assert trigger["type"] == "metrics-api"
    assert set(trigger["metadata"]) == {"url", "valueLocation", "targetValue"}
    # KEDA takes metadata as text.
    assert all(isinstance(value, str) for value in trigger["metadata"].values())
    ray = next(b for b in blocks() if "autoscaling_config" in b)["autoscaling_config"]
    module, _, function = ray["policy"]["policy_function"].partition(":")
    assert (module, function) == (replicas.__module__, replicas.__name__)


def test_the_router_reads_a_metric_that_is_published_and_scores_low_ones_high() -> None:
    plugins = next(b for b in blocks() if "plugins" in b)["plugins"]
    extractor = next(p for p in plugins if p["type"] == "core-metrics-extractor")
    scorer = next(p for p in plugins if p["type"] == "endpoint-attribute-scorer")["parameters"]
    (custom,) = extractor["parameters"]["engineConfigs"][0]["customMetrics"]
    assert custom["attributeKey"] == scorer["attributeKey"]
    source = Path(__file__).parents[1] / "src" / "energylens" / "watching" / "publishing.py"
    assert custom["metricSpec"] in source.read_text(encoding="utf-8")
    assert scorer["algorithm"]["type"] == "linear_lower_is_better"
    bounds = scorer["algorithm"]["normalization"]["fixedRange"]
    assert bounds["min"] < bounds["max"]
