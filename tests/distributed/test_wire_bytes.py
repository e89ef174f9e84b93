"""Bytes on the wire, counted by the operating system."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import launching
import pytest

SCRIPT = Path(__file__).parent / "wire_bytes.py"


def _has_namespaces() -> bool:
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        return False
    return subprocess.run(["unshare", "--net", "ip", "link", "set", "lo", "up"], capture_output=True).returncode == 0


@pytest.mark.skipif(not _has_namespaces(), reason="needs root on Linux: a network namespace of its own")
def test_what_each_way_sends() -> None:
    """Of a ring's all-reduce, 2 (P - 1) / P times the gradient by each process, with a tenth for everything else."""
    size = 3
    result = subprocess.run(
        [sys.executable, str(SCRIPT), str(size)],
        env=launching.environment(),
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert result.returncode == 0, result.stderr
    sent = json.loads(result.stdout)
    ring = 2 * (size - 1) / size * sent["parameters"]
    for name, share in {
        "plain": 1,
        "workers": 1,
        "stale": 1,
        "bf16": 1 / 2,
        "fp16": 1 / 2,
        "local": 1 / 4,
        "diloco": 1 / 4,
        "late": 1 / 4,
    }.items():
        assert 0.97 * share * ring < sent[name] < 1.1 * share * ring, (name, sent)
    assert 0 < sent["powersgd"] < 0.05 * ring
