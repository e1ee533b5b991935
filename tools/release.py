"""Build a wheel and an sdist, check what is in them, and install each in an empty environment.

::

    python -m tools.release [--no-install]

Every Python 3.11 to 3.13 that is on the path is tried; those that are not are named.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tempfile
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


def main() -> None:
    """Do all of it; the exit code is 1 where something is wrong."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        archives = build(folder)
        wrong = [fault for archive in archives for fault in faults(archive)]
        for fault in wrong:
            print(fault)
        for version in PYTHONS if "--no-install" not in sys.argv else ():
            python = shutil.which(f"python{version}")
            if python is None or subprocess.run([python, "-c", ""], check=False).returncode:
                print(f"Python {version}: not here, not tried")
                continue
            for archive in archives:
                print(f"Python {version}, {archive.name}: {install(archive, python, folder)}")
        if wrong:
            raise SystemExit(1)
        dist = ROOT / "dist"
        dist.mkdir(exist_ok=True)
        for archive in archives:
            shutil.copy(archive, dist)
        print(f"Written to dist/: {', '.join(archive.name for archive in archives)}")


if __name__ == "__main__":
    main()
