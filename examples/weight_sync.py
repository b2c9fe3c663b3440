"""A trainer process keeps a sampler process up to date over a socket: each step sends only what changed.

``python examples/weight_sync.py`` runs both on this machine, in seconds and without a download. One payload is damaged
on its way: the sampler refuses it, stays at the version that it has, and gets it again.
"""

from __future__ import annotations

import hashlib
import json
import socket
import subprocess
import sys

import torch
from torch import nn

from graftwork.errors import GraftworkError
from graftwork.store.sync import apply_, encode, inspect

STEPS = 5
DAMAGED_STEP = 3
LARGEST_MESSAGE = 1 << 30
TIMEOUT = 60.0


def policy() -> nn.Module:
    """The model, the same in both processes."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(256, 64), nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256))


def send(connection: socket.socket, message: bytes) -> None:
    """Send a message after its length, 8 bytes little-endian."""
    connection.sendall(len(message).to_bytes(8, "little") + message)


def receive(connection: socket.socket) -> bytes:
    """Receive a message; its length is checked before any memory is taken for it."""
    length = int.from_bytes(receive_exactly(connection, 8), "little")
    if length > LARGEST_MESSAGE:
        raise ValueError(f"a message of {length} bytes is announced; at most {LARGEST_MESSAGE} are taken")
    return receive_exactly(connection, length)


def receive_exactly(connection: socket.socket, length: int) -> bytes:
    """``length`` bytes, however they arrive."""
    data = bytearray()
    while len(data) < length:
        piece = connection.recv(min(length - len(data), 1 << 20))
        if not piece:
            raise ConnectionError("the other process is gone")
        data += piece
    return bytes(data)


def fingerprint(model: nn.Module) -> str:
    """SHA-256 of all weights, to compare the two processes in the end."""
    digest = hashlib.sha256()
    for tensor in model.state_dict().values():
        digest.update(tensor.contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def sampler(port: int) -> None:
    """Apply each payload that arrives, and answer with the version that the model then has."""
    model, version = policy().bfloat16(), "0"
    with socket.create_connection(("127.0.0.1", port), TIMEOUT) as connection:
        while payload := receive(connection):
            answer: dict[str, object] = {}
            try:
                report = apply_(model, payload, expect_parent=version)
                version = report.version or version
            except GraftworkError as error:
                answer["error"] = str(error)
            answer |= {"version": version, "weights": fingerprint(model)}
            send(connection, json.dumps(answer).encode())


def trainer(connection: socket.socket) -> None:
    """Train, and after each step send what it changed in the bfloat16 weights."""
    model = policy()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    sent, tokens = policy().bfloat16(), torch.arange(256)
    for step in range(1, STEPS + 1):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(tokens), tokens.roll(1)).backward()
        optimizer.step()

        current = policy()
        current.load_state_dict(model.state_dict())
        payload = encode(sent, current.bfloat16(), version=str(step), parent=str(step - 1))
        report = inspect(payload)
        print(f"step {step}: {report.payload_bytes:,} bytes for {report.nbytes:,} bytes of weights")

        if step == DAMAGED_STEP:
            damaged = bytearray(payload)
            damaged[len(damaged) // 2] ^= 1
            send(connection, bytes(damaged))
            answer = json.loads(receive(connection))
            assert "error" in answer and answer["version"] == str(step - 1)
            print(f"  refused: {answer['error'].splitlines()[0]}; the sampler stays at version {step - 1}")

        send(connection, payload)
        answer = json.loads(receive(connection))
        if answer.get("error") or answer["version"] != str(step):
            raise SystemExit(f"the sampler could not take version {step}: {answer}")
        apply_(sent, payload)
        assert answer["weights"] == fingerprint(sent) == fingerprint(current)
    send(connection, b"")
    print(f"both processes hold version {STEPS}, bit for bit")


def main() -> None:
    """Start the sampler as a process of its own and train."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(TIMEOUT)
        port = server.getsockname()[1]
        process = subprocess.Popen([sys.executable, __file__, "--sampler", str(port)])
        try:
            connection, _ = server.accept()
            with connection:
                connection.settimeout(TIMEOUT)
                trainer(connection)
            if process.wait(TIMEOUT):
                raise SystemExit("the sampler failed")
        finally:
            process.kill()
            process.wait()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--sampler"]:
        sampler(int(sys.argv[2]))
    else:
        main()
