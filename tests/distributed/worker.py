"""One process of a test's world: joins by a file store, runs one function of a test file, keeps what it returns."""

from __future__ import annotations

import atexit
import ctypes
import importlib.util
import os
import pickle
import sys
import time
import traceback
import warnings
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any


def load(file: str) -> ModuleType:
    """The test file as a module."""
    spec = importlib.util.spec_from_file_location("case", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["case"] = module
    spec.loader.exec_module(module)
    return module


def interpreter(file: str, function: str, environment: dict[str, str], *arguments: Any) -> None:
    """Run one function under ``environment``, and end by exit handlers and destructors, which forked processes skip."""
    os.environ.update(environment)
    getattr(load(file), function)(*arguments)
    atexit._run_exitfuncs()
    ctypes.CDLL(None).exit(0)


def main(file: str, function: str, rank: int, size: int, folder: str) -> None:
    """Run one rank."""
    import torch
    from torch import distributed

    warnings.simplefilter("error")
    torch.set_num_threads(1)
    module = load(file)
    place = Path(folder)
    arguments = pickle.loads((place / "arguments").read_bytes())
    distributed.init_process_group(
        "gloo", init_method=f"file://{place}/store", rank=rank, world_size=size, timeout=timedelta(seconds=60)
    )
    try:
        result = getattr(module, function)(rank, size, *arguments)
    except Exception:
        (place / f"error-{rank}").write_text(traceback.format_exc())
        sys.exit(1)
    (place / f"result-{rank}").write_bytes(pickle.dumps(result))
    time.sleep(0.05)
    distributed.destroy_process_group()
