"""`hf-prune doctor`: what is installed, on which devices, and what is broken, with the remedy."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FAISS = ("faiss-cpu", "faiss-gpu", "faiss-gpu-cu12", "faiss-gpu-cu11")
EXTRAS = {"faiss-cpu": "cpu", "sentence-transformers": "st", "scikit-learn": "demo"}
PROBE_SECONDS = 180

# imports happen in a process of their own: one that crashes or hangs is a finding, not the end of the doctor
_PROBES = {
    "torch": "import torch; found = {'cuda_build': torch.version.cuda, 'cuda': [torch.cuda.get_device_name(i) for i in "
    "range(torch.cuda.device_count())], 'mps': torch.backends.mps.is_available(), 'threads': torch.get_num_threads()}",
    "faiss": "import faiss; found = {'file': faiss.__file__, 'version': getattr(faiss, '__version__', None), "
    "'gpus': faiss.get_num_gpus() if hasattr(faiss, 'get_num_gpus') else 0}",
    "datasets": "import datasets; found = {'cache': str(datasets.config.HF_DATASETS_CACHE)}",
}


@dataclass(frozen=True)
class Finding:
    """One line of the doctor.

    Args:
        topic: what was looked at.
        state: "ok", "note", "warning" or "broken".
        text: what was found.
        remedy: a command or step, where there is one.
    """

    topic: str
    state: str
    text: str
    remedy: str = ""

    def __str__(self) -> str:
        mark = {"ok": "ok     ", "note": "note   ", "warning": "warning", "broken": "BROKEN "}[self.state]
        return f"{mark}  {self.topic}: {self.text}" + (f"\n         -> {self.remedy}" if self.remedy else "")


def examine() -> list[Finding]:
    """Look at everything; takes some seconds, for torch and faiss are imported. Nothing is changed or sent.

    >>> {f.state for f in check_faiss(["faiss-cpu", "faiss-gpu"], {"file": "faiss/__init__.py"})}
    {'broken'}
    """
    torch, faiss, datasets = (probe(name) for name in _PROBES)
    return [
        Finding("system", "ok", f"Python {platform.python_version()}, {platform.system()} {platform.machine()}"),
        *check_packages(installed()),
        *([] if "error" not in datasets else [_failed("datasets", datasets)]),
        *check_faiss([name for name in FAISS if _version(name)], faiss),
        *check_devices(torch),
        *check_processes(torch),
        *check_caches(folders(datasets)),
        *check_hub(os.environ),
    ]


def main(as_json: bool, echo: Any = print) -> int:
    """Print the findings; the exit code is 1 if something is broken."""
    findings = examine()
    broken = sum(f.state == "broken" for f in findings)
    if as_json:
        keys = ("topic", "state", "text", "remedy")
        listed = [{key: getattr(f, key) for key in keys if getattr(f, key)} for f in findings]
        echo(json.dumps({"healthy": not broken, "findings": listed}, indent=2))
    else:
        for finding in findings:
            echo(str(finding))
        echo(f"\n{broken} broken" if broken else "\nnothing is broken")
    return 1 if broken else 0


def probe(name: str) -> dict[str, Any]:
    """What an import in another process tells, or `{"error": ...}`."""
    code = f"import json\n{_PROBES[name]}\nprint('\\n' + json.dumps(found))"
    try:
        # -P: the folder where the doctor is called may hold a datasets/ or torch.py of the user's
        done = subprocess.run(
            [sys.executable, "-P", "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=PROBE_SECONDS
        )
    except subprocess.TimeoutExpired:
        return {"error": f"the import did not end within {PROBE_SECONDS} s"}
    if done.returncode == 0:
        return dict(json.loads(done.stdout.splitlines()[-1]))
    lines = done.stderr.strip().splitlines()
    return {"error": lines[-1] if lines else f"the process ended with {done.returncode}"}


def _failed(name: str, found: Mapping[str, Any]) -> Finding:
    return Finding(name, "broken", f"does not import: {found['error']}", f"pip install --force-reinstall {name}")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def installed() -> dict[str, tuple[str | None, str | None, bool]]:
    """Version, requirement and whether it is needed, by package; by the metadata of this package, where it has some."""
    from packaging.requirements import Requirement

    try:
        lines = importlib.metadata.requires("hf_prune") or []
    except importlib.metadata.PackageNotFoundError:  # run from a checkout
        lines = ["datasets", "huggingface_hub", "numpy", "pyarrow", "safetensors", "torch", "transformers", "typer"]
        lines += ["accelerate", "evaluate", "jinja2", "pillow", "pyyaml", "tqdm", "xxhash"]
    found: dict[str, tuple[str | None, str | None, bool]] = {}
    for requirement in map(Requirement, lines):
        if requirement.marker is None or requirement.marker.evaluate():
            found[requirement.name] = (_version(requirement.name), str(requirement.specifier) or None, True)
    for name in EXTRAS:
        found.setdefault(name, (_version(name), None, False))
    return found


def check_packages(packages: Mapping[str, tuple[str | None, str | None, bool]]) -> list[Finding]:
    """Versions against requirements.

    >>> print(check_packages({"torch": ("1.0", ">=2.6", True)})[1])
    BROKEN   torch: 1.0 is installed, >=2.6 is needed
             -> pip install 'torch>=2.6'
    """
    from packaging.specifiers import SpecifierSet

    findings, good = [], []
    for name, (version, wanted, needed) in sorted(packages.items()):
        if version is None and needed:
            findings.append(Finding(name, "broken", "is not installed", f"pip install '{name}{wanted or ''}'"))
        elif version is None and name not in FAISS:
            findings.append(Finding(name, "note", "is not installed", f"pip install 'hf_prune[{EXTRAS[name]}]'"))
        elif version is not None and wanted and not SpecifierSet(wanted).contains(version, prereleases=True):
            text = f"{version} is installed, {wanted} is needed"
            findings.append(Finding(name, "broken", text, f"pip install '{name}{wanted}'"))
        elif version is not None:
            good.append(f"{name} {version}")
    from hf_prune import __version__

    return [Finding("packages", "ok", ", ".join([f"hf_prune {__version__}", *good])), *findings]


def check_faiss(distributions: Sequence[str], found: Mapping[str, Any]) -> list[Finding]:
    """Compare the installed faiss wheels with what `import faiss` gives.

    Args:
        distributions: those of `FAISS` that are installed.
        found: `{"file", "version", "gpus"}` or `{"error"}`.
    """
    names = " and ".join(distributions)
    if len(distributions) > 1:
        text = f"{names} are installed into one folder: the later overwrote the earlier, and neither is whole"
        remedy = f"pip uninstall -y {' '.join(distributions)} && pip install 'hf_prune[cpu]'"
        return [Finding("faiss", "broken", text, remedy)]
    extra = "gpu" if distributions and "gpu" in distributions[0] else "cpu"
    again = f"pip install --force-reinstall --no-deps {distributions[0] if distributions else 'faiss-cpu'}"
    hollow = "error" in found and "has no attribute" in str(found["error"])
    if not distributions and ("error" in found):
        return [Finding("faiss", "note", "is not installed; k-means uses torch", "pip install 'hf_prune[cpu]'")]
    if hollow or ("file" in found and found["file"] is None):
        text = f"an empty folder is imported as faiss, though {names or 'no wheel'} is listed as installed"
        return [Finding("faiss", "broken", text, again)]
    if "error" in found:
        remedy = f"pip install 'hf_prune[{extra}]'" if "nvidia" in str(found["error"]) else again
        return [Finding("faiss", "broken", f"{names} does not import: {found['error']}", remedy)]
    if extra == "gpu" and not found.get("gpus"):
        return [Finding("faiss", "note", f"{names} {found.get('version')} sees no GPU; it works on the CPU")]
    return [Finding("faiss", "ok", f"{names or 'not from a wheel'}, version {found.get('version')}")]


def check_devices(torch: Mapping[str, Any]) -> list[Finding]:
    """Devices that torch sees."""
    if "error" in torch:
        return [_failed("torch", torch)]
    if torch["cuda"]:
        return [Finding("devices", "ok", f"{len(torch['cuda'])} CUDA: {', '.join(torch['cuda'])}")]
    if torch["mps"]:
        return [Finding("devices", "ok", "Apple MPS")]
    cpu = f"CPU, {torch['threads']} threads of torch"
    if torch["cuda_build"]:
        text = f"{cpu}; torch is built for CUDA {torch['cuda_build']} but finds no GPU"
        return [Finding("devices", "note", text, "nvidia-smi says whether the driver does")]
    return [Finding("devices", "ok", cpu)]


def check_processes(torch: Mapping[str, Any]) -> list[Finding]:
    """How worker processes start, and how to run more of them."""
    import multiprocess

    method = multiprocess.get_start_method(allow_none=True) or multiprocess.get_all_start_methods()[0]
    findings = [Finding("start method", "ok", f"{method}, {os.cpu_count()} CPU cores")]
    if method == "fork" and torch.get("cuda"):
        text = "fork: a process that has used CUDA cannot start CUDA workers"
        remedy = 'multiprocess.set_start_method("spawn", force=True) before map(num_proc=...), or accelerate launch'
        findings = [Finding("start method", "warning", text, remedy)]
    command = "ACCELERATE_USE_CPU=1 accelerate launch --multi_gpu --num_processes 2 script.py"
    if torch.get("cuda"):
        command = f"accelerate launch --num_processes {max(len(torch['cuda']), 1)} script.py"
    return [*findings, Finding("more processes", "note", "score(ds, ...) divides its shards under", command)]


def folders(datasets: Mapping[str, Any]) -> dict[str, Path]:
    """The caches by name."""
    from huggingface_hub import constants

    from hf_prune.store import home

    found = {"HF_HUB_CACHE": Path(constants.HF_HUB_CACHE), "HF_PRUNE_HOME": home()}
    if "cache" in datasets:
        found["HF_DATASETS_CACHE"] = Path(datasets["cache"])
    return {**found, "temporary files": Path(tempfile.gettempdir())}


def check_caches(caches: Mapping[str, Path]) -> list[Finding]:
    """Whether the caches can be written, by writing an empty file; nothing is left."""
    findings = []
    for name, path in caches.items():
        there = next((p for p in (path, *path.parents) if p.exists()), path)
        try:
            with tempfile.TemporaryFile(dir=there):
                free = shutil.disk_usage(there).free / 1e9
        except OSError as error:
            remedy = f"make it writable, or set {name} to another folder" if name.isupper() else "set TMPDIR"
            findings.append(Finding(name, "broken", f"{path} cannot be written: {error.strerror}", remedy))
            continue
        state = "warning" if free < 1 else "ok"
        findings.append(Finding(name, state, f"{path}, {free:.1f} GB free", "free some space" if free < 1 else ""))
    return findings


def check_hub(environment: Mapping[str, str]) -> list[Finding]:
    """Whether the Hub may be asked, and whether there is a token: never the token itself."""
    from huggingface_hub import get_token

    names = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
    offline = [name for name in names if environment.get(name, "").upper() in ("1", "ON", "YES", "TRUE")]
    text = f"offline by {', '.join(offline)}" if offline else "online mode (not tried)"
    token = "a token is present" if get_token() else "no token: enough to read what is public"
    remedy = "" if get_token() else "hf auth login, to push or to read private data"
    return [
        Finding("Hub", "note" if offline else "ok", text, f"unset {' '.join(offline)}" if offline else ""),
        Finding("Hub login", "ok" if get_token() else "note", token, remedy),
    ]
