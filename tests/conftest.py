"""Shared by all tests: one thread, no network, and a helper that runs code in a fresh process."""

import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

torch.set_num_threads(1)

ROOT = Path(__file__).resolve().parent.parent
LOCAL = {"localhost", "127.0.0.1", "::1", "0.0.0.0", "", None, socket.gethostname()}


@pytest.fixture(scope="session", autouse=True)
def no_network() -> Iterator[None]:
    """Name look-ups and connections beyond this machine fail at once, so that no test can come to need them."""
    patch = pytest.MonkeyPatch()
    look_up, connect = socket.getaddrinfo, socket.socket.connect

    def local_look_up(host: Any, *args: Any, **kwargs: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        if name not in LOCAL:
            raise OSError(f"tests do not use the network: {name}")
        return look_up(host, *args, **kwargs)

    def local_connect(self: socket.socket, address: Any) -> None:
        if isinstance(address, tuple) and address[0] not in LOCAL and not str(address[0]).startswith("127."):
            raise OSError(f"tests do not use the network: {address[0]}")
        connect(self, address)

    patch.setattr(socket, "getaddrinfo", local_look_up)
    patch.setattr(socket.socket, "connect", local_connect)
    yield
    patch.undo()


@pytest.fixture(scope="session")
def fresh_python() -> Callable[[str], str]:
    """Runs Python code in a new process from the repository's root and returns what it printed."""

    def run(code: str) -> str:
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run
