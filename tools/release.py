"""Build a wheel and an sdist, check what is in them, and install each in an empty environment.

::

    python -m tools.release [--no-install]

Every Python 3.11 to 3.13 that is on the path or of pyenv is tried; those that are not are named.
The wheel is tried besides with the lowest version of each package that it depends on, by the tests
that need no other. A list of what the wheel installs (SBOM, CycloneDX) goes beside it.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTHONS = ("3.11", "3.12", "3.13")
#: What both must hold, under the package's folder.
HELD = (
    "py.typed",
    "catalog/gpus.toml",
    "data/simulated-demo.csv",
    "door.py",
    "data/models/h100-vllm-0.11.json",
    "templates/report.html",
    "web/page/index.html",
)
TRIED = (
    "import energylens as el; print(el.select('datasheet', llm='Qwen/Qwen3-8B', gpu='H100', "
    "input_tokens=500, output_tokens=300).best.configuration.describe())"
)

#: Tests of the core, which need no extra: run with the lowest versions.
CORE_TESTS = ("test_fitting.py", "test_selection.py", "test_energy_join.py", "test_power_logs.py")
#: Prints what is installed beside pip: name, version, licence, what it requires.
LISTED = (
    "import json; from importlib.metadata import distributions as d; print(json.dumps([[x.name, "
    "x.version, x.metadata.get('License-Expression') or x.metadata.get('License') or '', "
    "x.requires or []] for x in d() if x.name not in ('pip', 'setuptools')]))"
)


def interpreter(version: str) -> str | None:
    """Find a Python that runs: on the path or of pyenv, whose shims may not be set."""
    own = sorted((Path.home() / ".pyenv" / "versions").glob(f"{version}.*/bin/python"))
    for python in filter(None, (shutil.which(f"python{version}"), *map(str, own))):
        run = subprocess.run([python, "-c", ""], check=False, stderr=subprocess.DEVNULL)
        if run.returncode == 0:
            return python
    return None


def build(folder: Path) -> tuple[Path, Path]:
    """Build both; the wheel and the sdist."""
    command = [sys.executable, "-m", "build", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, sdist


def names_in(archive: Path) -> set[str]:
    """Files of a wheel or an sdist."""
    if archive.suffix == ".whl":
        return set(zipfile.ZipFile(archive).namelist())
    with tarfile.open(archive) as file:
        return {name.partition("/")[2] for name in file.getnames()}


def faults(archive: Path) -> list[str]:
    """Say what is wrong with the content of an archive; [] if nothing is."""
    names = names_in(archive)
    prefix = "energylens/" if archive.suffix == ".whl" else "src/energylens/"
    found = [f"{archive.name} lacks {prefix}{name}" for name in HELD if prefix + name not in names]
    if not any(Path(name).name == "LICENSE" for name in names):
        found.append(f"{archive.name} lacks LICENSE")
    strangers = ("tests/", "shared/", "benchmarks/") if archive.suffix == ".whl" else ("shared/",)
    found += [f"{archive.name} holds {n}" for n in sorted(names) if n.startswith(strangers)]
    found += [f"{archive.name} holds {n}" for n in sorted(names) if "__pycache__" in n]
    return found


def install(archive: Path, python: str, folder: Path) -> str:
    """Install an archive in an empty environment, and give what the first answer is."""
    place = folder / f"{Path(python).name}-{archive.suffix.strip('.')}"
    subprocess.run([python, "-m", "venv", str(place)], check=True)
    inside = str(place / "bin" / "python")
    pip = [inside, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, str(archive)], check=True)
    done = subprocess.run(
        [inside, "-c", TRIED], check=True, capture_output=True, text=True, cwd=place
    )
    return done.stdout.strip()


def lowest() -> list[str]:
    """Give the lower bounds of the packages that the wheel depends on, as pins."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [re.sub(r">=([\d.]+)", r"==\1", text) for text in project["dependencies"]]


def try_lowest(wheel: Path, python: str, folder: Path) -> None:
    """Run the tests of the core with the lowest versions.

    Raises
    ------
    subprocess.CalledProcessError
        If they cannot be installed together, or a test fails.
    """
    place = folder / "lowest"
    subprocess.run([python, "-m", "venv", str(place)], check=True)
    inside = str(place / "bin" / "python")
    pip = [inside, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, str(wheel), *lowest(), "pytest", "hypothesis"], check=True)
    tests = [str(ROOT / "tests" / name) for name in CORE_TESTS]
    command = [inside, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "ignore", *tests]
    # The tests' own modules are found from the folder above them, the package as installed.
    subprocess.run(command, check=True, cwd=ROOT, env={"PYTHONPATH": str(ROOT)})


def sbom(wheel: Path, python: str, folder: Path) -> dict[str, object]:
    """Say what the wheel installs, as a CycloneDX document: packages, versions, licences, hashes.

    Of the wheel itself the digest stands in it; of the others the versions that the index gives
    today, which are those that were tried.
    """
    place = folder / "sbom"
    subprocess.run([python, "-m", "venv", str(place)], check=True)
    inside = str(place / "bin" / "python")
    pip = [inside, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, str(wheel)], check=True)
    done = subprocess.run([inside, "-c", LISTED], check=True, capture_output=True, text=True)
    return document(json.loads(done.stdout), wheel)


def document(installed: list[tuple[str, str, str, list[str]]], wheel: Path) -> dict[str, object]:
    """Write what is installed as CycloneDX 1.5 has it."""

    def plain(name: str) -> str:
        return re.sub(r"[-_.]+", "-", name).lower()

    urls = {plain(name): f"pkg:pypi/{plain(name)}@{version}" for name, version, *_ in installed}
    components, depends = [], []
    for name, version, licence, requires in sorted(installed):
        needed = {
            plain(re.split(r"[ ;<>=!~\[(]", text, maxsplit=1)[0])
            for text in requires
            if "extra ==" not in text
        }
        component: dict[str, object] = {
            "type": "library",
            "bom-ref": urls[plain(name)],
            "name": name,
            "version": version,
            "purl": urls[plain(name)],
        }
        if licence and "\n" not in licence:
            component["licenses"] = [{"license": {"name": licence}}]
        if plain(name) == "energylens":
            digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
            component["hashes"] = [{"alg": "SHA-256", "content": digest}]
        components.append(component)
        known = sorted(urls[one] for one in needed if one in urls)
        depends.append({"ref": urls[plain(name)], "dependsOn": known})
    own = [c for c in components if c["name"] == "energylens"]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": own[0]} if own else {},
        "components": [c for c in components if c not in own],
        "dependencies": depends,
    }


def main() -> None:
    """Do all of it; the exit code is 1 where something is wrong."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        archives = build(folder)
        wrong = [fault for archive in archives for fault in faults(archive)]
        for fault in wrong:
            print(fault)
        for version in PYTHONS if "--no-install" not in sys.argv else ():
            python = interpreter(version)
            if python is None:
                print(f"Python {version}: not here, not tried")
                continue
            for archive in archives:
                print(f"Python {version}, {archive.name}: {install(archive, python, folder)}")
        listed: dict[str, object] = {}
        if "--no-install" not in sys.argv:
            try_lowest(archives[0], sys.executable, folder)
            print(f"Lowest versions: {', '.join(lowest())}: the core's tests pass")
            listed = sbom(archives[0], sys.executable, folder)
        if wrong:
            raise SystemExit(1)
        dist = ROOT / "dist"
        dist.mkdir(exist_ok=True)
        for archive in archives:
            shutil.copy(archive, dist)
        if listed:
            beside = dist / f"{archives[0].stem}.cdx.json"
            beside.write_text(json.dumps(listed, indent=2) + "\n", encoding="utf-8")
        print(f"Written to dist/: {', '.join(archive.name for archive in archives)}")


if __name__ == "__main__":
    main()
