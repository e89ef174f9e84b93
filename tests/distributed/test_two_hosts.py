"""Two hosts made of network namespaces: one is cut off, the other goes on from the newest checkpoint by itself."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import resuming
import torch
from launching import HERE, TORCHRUN, environment, wait_for
from resuming import error, same_records, saved_steps

# A host that says nothing for 3 intervals of 2 s is lost: torch's own 3 × 5 s are as right, and cost a longer test.
TIMES = "join_timeout=60,last_call_timeout=4,keep_alive_interval=2,keep_alive_max_attempt=3"
FIRST, SECOND = "10.231.77.1", "10.231.77.2"


def ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True, timeout=10).stdout


def inhabitants(name: str) -> list[int]:
    with suppress(subprocess.SubprocessError, OSError):
        return [int(pid) for pid in ip("netns", "pids", name).split()]
    return []


def evict(name: str) -> None:
    """End whoever lives in the namespace, and remove it."""
    for _ in range(50):
        left = inhabitants(name)
        if not left:
            break
        for pid in left:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)
    with suppress(subprocess.SubprocessError, OSError):
        ip("netns", "del", name)


@pytest.fixture
def hosts() -> Iterator[list[str]]:
    """Two namespaces joined by a pair of virtual devices; nothing leads out of them."""
    names = [f"wholebatch-{os.getpid()}-{side}" for side in "ab"]
    devices = [f"wb{os.getpid() % 100000}{side}" for side in "ab"]
    try:
        try:
            for name in names:
                ip("netns", "add", name)
            ip("link", "add", devices[0], "netns", names[0], "type", "veth", "peer", devices[1], "netns", names[1])
            for name, device, address in zip(names, devices, (FIRST, SECOND), strict=True):
                ip("-n", name, "addr", "add", f"{address}/24", "dev", device)
                ip("-n", name, "link", "set", device, "up")
                ip("-n", name, "link", "set", "lo", "up")
        except (OSError, subprocess.SubprocessError) as refused:
            reason = getattr(refused, "stderr", None) or refused
            pytest.skip(f"network namespaces cannot be made here: {str(reason).strip()}")
        yield names
    finally:
        for name in names:
            evict(name)


@pytest.fixture(scope="module")
def undisturbed() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    result = resuming.train(None)
    torch.set_num_threads(threads)
    return result


def start(host: str, device: str, folder: Path, result: Path) -> subprocess.Popen[bytes]:
    one = device.endswith("a")  # which holds the rendezvous: torch cannot tell by its address in a namespace
    command = [
        *TORCHRUN, "--nnodes=1:2", "--nproc-per-node=1", "--max-restarts=3", "--rdzv-id=two-hosts",
        "--rdzv-backend=c10d", f"--rdzv-endpoint={FIRST}:29400", f"--rdzv-conf={TIMES},is_host={int(one)}",
        f"--local-addr={FIRST if one else SECOND}",
        str(HERE / "elastic.py"), str(folder), "0.4", str(result),
    ]  # fmt: skip
    with open(result.with_name(f"{host}.log"), "wb") as log:
        return subprocess.Popen(
            ["ip", "netns", "exec", host, *command],
            env=environment(GLOO_SOCKET_IFNAME=device, WHOLEBATCH_TIMEOUT="25"),
            stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip


def logs(folder: Path) -> str:
    return "\n".join(path.read_text(errors="replace")[-3000:] for path in folder.glob("*.log"))


@pytest.mark.skipif(not os.environ.get("WHOLEBATCH_LONG_TESTS"), reason="WHOLEBATCH_LONG_TESTS is not set")
@pytest.mark.timeout(300)
@pytest.mark.parametrize("how", ["link down", "killed"])
def test_one_of_two_hosts_is_cut_off(hosts: list[str], tmp_path: Path, undisturbed: Any, how: str) -> None:
    folder, result = tmp_path / "run", tmp_path / "result"
    devices = [f"wb{os.getpid() % 100000}{side}" for side in "ab"]
    first, second = (start(host, device, folder, result) for host, device in zip(hosts, devices, strict=True))
    try:
        wait_for(lambda: (folder / "checkpoints").exists() and len(saved_steps(folder)) > 1, 90, lambda: logs(tmp_path))
        assert second.poll() is None
        if how == "killed":
            for pid in inhabitants(hosts[1]):
                with suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
        else:
            ip("-n", hosts[1], "link", "set", devices[1], "down")
        cut_at, cut = max(saved_steps(folder)), time.monotonic()
        wait_for(lambda: max(saved_steps(folder)) > cut_at + 1, 120, lambda: logs(tmp_path))
        print(f"{how}: goes on {time.monotonic() - cut:.1f} s later, from step {cut_at}")
        assert first.wait(timeout=120) == 0, logs(tmp_path)
    finally:
        for process in (first, second):
            with suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    weights, records, world = pickle.loads(result.read_bytes())
    assert world[0] == "1"  # processes
    assert error(weights, undisturbed[0]) < 1e-12
    assert same_records(records, undisturbed[1])
