"""What is deployed beside ``energylens watch``: every metric name is one that it publishes."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from energylens.cli import build_parser
from energylens.watching.publishing import COUNTERS, GAUGES, OTEL_GAUGES

yaml = pytest.importorskip("yaml")

DEPLOY = Path(__file__).parents[1] / "deploy"
DASHBOARD = DEPLOY / "grafana" / "energylens.json"
ALERTS = DEPLOY / "prometheus" / "alerts.yml"
NAME = re.compile(r"\b(?:energylens|gen_ai)_[a-z_]+")
#: As tests/test_watch.py finds all of them in the text that is scraped.
PUBLISHED = {name for name, *_ in (*GAUGES, *OTEL_GAUGES, *COUNTERS)} | {
    "gen_ai_infrastructure_energy_joules_total",
    "energylens_drift_alarm",
    "energylens_engine_up",
    "energylens_meter_up",
    "energylens_window_valid",
    "energylens_watch_info",
}


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    return dict(json.loads(DASHBOARD.read_text()))


def documents(path: Path) -> list[Any]:
    return [d for d in yaml.safe_load_all(path.read_text()) if d is not None]


def test_every_metric_of_the_dashboard_is_published_and_most_are_shown(
    dashboard: dict[str, Any],
) -> None:
    asked = {
        name
        for panel in dashboard["panels"]
        for target in panel["targets"]
        for name in NAME.findall(target["expr"])
    }
    asked |= {n for v in dashboard["templating"]["list"] for n in NAME.findall(v["definition"])}
    assert asked <= PUBLISHED, asked - PUBLISHED
    ours = {name for name in PUBLISHED if name.startswith("energylens_")}
    unseen = {
        "energylens_watch_info",
        "energylens_window_seconds",
        "energylens_last_window_timestamp_seconds",
        "energylens_expected_energy_joules_total",
        "energylens_windows_total",
    }
    assert ours - asked == unseen


def test_the_dashboard_can_be_imported_anywhere(dashboard: dict[str, Any]) -> None:
    [source] = dashboard["__inputs"]
    assert (source["name"], source["pluginId"]) == ("DS_PROMETHEUS", "prometheus")
    assert dashboard["uid"] is None
    assert [v["name"] for v in dashboard["templating"]["list"]] == ["namespace", "model"]
    text = json.dumps(dashboard)
    assert set(re.findall(r'"uid": "([^"]*)"', text)) == {"${DS_PROMETHEUS}"}
    ids, places = set(), set()
    for panel in dashboard["panels"]:
        assert len(panel["description"]) > 30, panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        ids.add(panel["id"])
        places.add(tuple(panel["gridPos"].values()))
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
        for target in panel["targets"]:
            assert 'model=~"$model"' in target["expr"]
            assert 'namespace=~"$namespace"' in target["expr"]
    assert len(ids) == len(places) == len(dashboard["panels"])


def test_every_metric_of_the_alerts_is_published() -> None:
    [document] = documents(ALERTS)
    [group] = document["groups"]
    for rule in group["rules"]:
        names = set(NAME.findall(rule["expr"]))
        assert names
        assert names <= PUBLISHED
        assert rule["labels"]["severity"] in ("info", "warning")
        assert {"summary", "description"} <= set(rule["annotations"])
        words = set(NAME.findall(str(rule["annotations"])))
        assert words <= PUBLISHED, words - PUBLISHED


PROMTOOL = shutil.which("promtool")


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed")
def test_prometheus_itself_accepts_rules_and_configuration(
    tmp_path: Path, dashboard: dict[str, Any]
) -> None:
    assert PROMTOOL is not None
    # Each query as a rule of its own, its variables filled in.
    rules = [
        {"record": f"q:{i}", "expr": re.sub(r"\$__\w+", "5m", target["expr"])}
        for i, target in enumerate(t for p in dashboard["panels"] for t in p["targets"])
    ]
    queries = tmp_path / "queries.yml"
    queries.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    for command in (
        ("check", "rules", str(ALERTS), str(queries)),
        ("check", "config", str(DEPLOY / "prometheus" / "prometheus.yml")),
    ):
        done = subprocess.run([PROMTOOL, *command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def watch_arguments(words: list[str]) -> Any:
    """Parse as the command does; what the environment fills in stays as it is written."""
    assert words[0] == "watch"
    return build_parser().parse_args(words)


def test_kubernetes_objects_fit_each_other() -> None:
    folder = DEPLOY / "kubernetes"
    [kustomization] = documents(folder / "kustomization.yaml")
    made = {}
    for name in kustomization["resources"]:
        [found] = documents(folder / name)
        made[found["kind"]] = found
    assert set(made) == {"Deployment", "Service", "ServiceMonitor", "PrometheusRule"}
    [rules] = documents(ALERTS)
    assert made["PrometheusRule"]["spec"] == rules
    deployment, service = made["Deployment"], made["Service"]
    pod = deployment["spec"]["template"]
    labels = pod["metadata"]["labels"].items()
    assert deployment["spec"]["selector"]["matchLabels"].items() <= labels
    assert service["spec"]["selector"].items() <= labels
    monitored = made["ServiceMonitor"]["spec"]["selector"]["matchLabels"].items()
    assert monitored <= service["metadata"]["labels"].items()
    [container] = pod["spec"]["containers"]
    [port] = container["ports"]
    assert service["spec"]["ports"][0]["targetPort"] == port["name"]
    assert made["ServiceMonitor"]["spec"]["endpoints"][0]["port"] == "metrics"
    assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    values, board = kustomization["configMapGenerator"]
    given = dict(line.split("=", 1) for line in values["literals"])
    written = " ".join(container["args"])
    assert set(re.findall(r"\$\((\w+)\)", written)) == set(given)
    filled = [re.sub(r"\$\((\w+)\)", lambda m: given[m[1]], word) for word in container["args"]]
    parsed = watch_arguments(filled)
    assert (parsed.serve, parsed.host) == (port["containerPort"], "0.0.0.0")
    # kustomize reads nothing outside of its folder: the dashboard is there twice, and the same.
    assert board["files"] == [DASHBOARD.name]
    assert (folder / DASHBOARD.name).read_bytes() == DASHBOARD.read_bytes()


KUBECTL = shutil.which("kubectl") or shutil.which("kustomize")


@pytest.mark.skipif(KUBECTL is None, reason="neither kubectl nor kustomize is installed")
@pytest.mark.parametrize(("folder", "kinds"), [
    ("kubernetes", ["ConfigMap", "ConfigMap", "Deployment", "PrometheusRule", "Service",
                    "ServiceMonitor"]),
    ("kubernetes/serve", ["Deployment", "Service"]),
])  # fmt: skip
def test_kustomize_itself_builds_the_bases(folder: str, kinds: list[str]) -> None:
    assert KUBECTL is not None
    verb = "kustomize" if Path(KUBECTL).name == "kubectl" else "build"
    done = subprocess.run(
        [KUBECTL, verb, str(DEPLOY / folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    made = [d for d in yaml.safe_load_all(done.stdout) if d]
    assert sorted(d["kind"] for d in made) == kinds
    settings = [d for d in made if d["kind"] == "ConfigMap"]
    [pod] = [d["spec"]["template"]["spec"] for d in made if d["kind"] == "Deployment"]
    for source in (s for c in pod["containers"] for s in c.get("envFrom", ())):
        assert source["configMapRef"]["name"] in {d["metadata"]["name"] for d in settings}


def test_the_page_in_kubernetes_is_asked_where_it_answers() -> None:
    folder = DEPLOY / "kubernetes" / "serve"
    [deployment], [service] = (
        documents(folder / "deployment.yaml"),
        documents(folder / "service.yaml"),
    )
    pod = deployment["spec"]["template"]
    [container] = pod["spec"]["containers"]
    parsed = build_parser().parse_args(container["args"])
    assert (parsed.port, parsed.host) == (container["ports"][0]["containerPort"], "0.0.0.0")
    assert parsed.allow_host == [service["metadata"]["name"]]
    assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    assert service["spec"]["ports"][0]["targetPort"] == container["ports"][0]["name"]
    exposed = re.search(r"^EXPOSE (.*)$", (DEPLOY / "Containerfile").read_text(), re.MULTILINE)
    assert exposed is not None
    assert str(parsed.port) in exposed[1].split()
    paths = {container[probe]["httpGet"]["path"] for probe in ("readinessProbe", "livenessProbe")}
    assert paths == {"/readyz", "/healthz"}
    assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"]["readOnlyRootFilesystem"] is True


#: What each alert is raised by, and what does not raise it.
ALERTED = {
    "EnergyMeasureAgain": ("energylens_drift_alarm", "1x2", "0x2", "1m"),
    "EnergySavingOpen": ("energylens_saving_open_ratio", "0.3x70", "0.1x70", "65m"),
    "EnergyMostlyIdle": ("energylens_loaded_idle_energy_ratio", "0.8x370", "0.2x370", "365m"),
    "EnergyEngineSilent": ("energylens_engine_up", "0x10", "1x10", "6m"),
    "EnergyMeterSilent": ("energylens_meter_up", "0x10", "1x10", "6m"),
    "EnergyWindowsMissing": ("energylens_last_window_timestamp_seconds", "0x20", "900x20", "15m"),
}


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed")
def test_each_alert_is_raised_by_what_it_is_for(tmp_path: Path) -> None:
    assert PROMTOOL is not None
    [document] = documents(ALERTS)
    assert {rule["alert"] for rule in document["groups"][0]["rules"]} == set(ALERTED)
    cases = [
        {
            "interval": "1m",
            "input_series": [{"series": f'{metric}{{model="m"}}', "values": values}],
            "alert_rule_test": [{"eval_time": at, "alertname": name, "exp_alerts": raised}],
        }
        for name, (metric, bad, good, at) in ALERTED.items()
        for values, raised in ((good, []), (bad, None))
        if raised is not None
    ]
    quiet = tmp_path / "quiet.yml"
    tests = {"rule_files": [str(ALERTS)], "evaluation_interval": "1m"}
    quiet.write_text(yaml.safe_dump({**tests, "tests": cases}))
    done = subprocess.run(
        [PROMTOOL, "test", "rules", str(quiet)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for name, (metric, bad, _, at) in ALERTED.items():
        # promtool fails where an alert is raised that was not expected, and says which.
        [case] = [c for c in cases if c["alert_rule_test"][0]["alertname"] == name]
        loud = {**case, "input_series": [{"series": f'{metric}{{model="m"}}', "values": bad}]}
        loud["alert_rule_test"] = [{"eval_time": at, "alertname": name, "exp_alerts": []}]
        path = tmp_path / f"{name}.yml"
        path.write_text(yaml.safe_dump({**tests, "tests": [loud]}))
        done = subprocess.run(
            [PROMTOOL, "test", "rules", str(path)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 1
        assert f'alertname="{name}"' in done.stdout + done.stderr


def test_compose_mounts_what_there_is_and_its_command_parses() -> None:
    [compose] = documents(DEPLOY / "compose.yaml")
    services = compose["services"]
    assert set(services) == {"watch", "prometheus", "grafana"}
    for name in ("prometheus", "grafana"):
        for mount in services[name]["volumes"]:
            source = mount.split(":")[0]
            if source.startswith("."):
                assert (DEPLOY / source).exists(), mount
            else:
                assert source in compose["volumes"]
        assert all(port.startswith("127.0.0.1:") for port in services[name]["ports"])
    words = [re.sub(r"\$\{\w+:-(.*?)\}", r"\1", w) for w in services["watch"]["command"]]
    words = [re.sub(r"\$\{(\w+):\?.*?\}", r"\1", w) for w in words]
    parsed = watch_arguments(words)
    [prometheus] = documents(DEPLOY / "prometheus" / "prometheus.yml")
    [target] = prometheus["scrape_configs"][0]["static_configs"]
    assert target["targets"] == [f"watch:{parsed.serve}"]
    assert "namespace" in target["labels"]
    [sources] = documents(DEPLOY / "grafana" / "provisioning" / "datasources" / "prometheus.yml")
    uid = sources["datasources"][0]["uid"]
    assert f"s/$${{DS_PROMETHEUS}}/{uid}/" in services["grafana"]["entrypoint"][-1]


def test_the_image_has_two_stages_and_no_root() -> None:
    lines = (DEPLOY / "Containerfile").read_text().splitlines()
    assert sum(line.startswith("FROM ") for line in lines) == 2
    last = [line for line in lines if line.startswith(("FROM", "USER", "RUN", "ENTRYPOINT"))]
    assert "USER 1001:0" in last[-2:]
    copied = [line.split()[1:-1] for line in lines if re.match(r"COPY (?!--from)", line)]
    root = DEPLOY.parent
    assert all((root / name).exists() for names in copied for name in names)
    extras = re.search(r"\.\[(.*?)\]", "\n".join(lines))
    assert extras is not None
    project = (root / "pyproject.toml").read_text()
    for extra in extras[1].split(","):
        assert re.search(rf"^{extra} = \[", project, re.MULTILINE), extra


def test_the_slurm_script_is_shell_and_its_command_parses() -> None:
    script = DEPLOY / "slurm" / "watch.sbatch"
    text = script.read_text()
    if (bash := shutil.which("bash")) is not None:
        done = subprocess.run([bash, "-n", str(script)], capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode()
    command = re.search(r"^energylens (watch .*?) \\\n    >", text, re.MULTILINE | re.DOTALL)
    assert command is not None
    parsed = watch_arguments(shlex.split(command[1].replace("\\\n", " ")))
    assert parsed.json
