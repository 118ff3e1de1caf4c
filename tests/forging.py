"""Saved scorers as a stranger would make them: changed, with a digest that fits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hf_prune.values import packed_digest


def forge(folder: Path, change: Callable[[dict[str, Any]], Any], blob: bytes | None = None) -> dict[str, Any]:
    """Change the document of a saved scorer (in place, or to what `change` returns) and its arrays, digest and all."""
    from safetensors.numpy import load

    path = folder / "scorer.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    changed = change(document)
    document = document if changed is None else changed
    if blob is None:
        files = sorted(folder.glob("arrays-*.safetensors"))
        blob = load(files[0].read_bytes())["blob"].tobytes() if files and document.get("arrays") is not None else b""
    names = document.get("classes")
    if isinstance(names, list) and all(isinstance(name, str) for name in names) and "value" in document:
        document["digest"] = packed_digest(names, json.dumps(document["value"], sort_keys=True), blob)
    path.write_text(json.dumps(document), encoding="utf-8")
    return document
