"""Weight sync of one step of reinforcement learning on SmolLM2: encode, apply in place, payload, memory, and a peer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from bench.checkpoints import smollm2_folder, work_folder
from bench.machine import core_count
from bench.measure import Job, copy_probe, settle, thread_counts
from bench.memory import peak_above_start
from bench.peers import Peer, Tensors, fireworks_apply, fireworks_encode, memory_peers, same_bits
from bench.record import Contest, Measurement, Options, Row, Target
from bench.updates import STEP_UPDATE, UPDATES

TESTS = ("tests/store",)
PEER = "fireworks arc_v3"
KIND = "arc_v3"
MODEL_CASES = {True: "SmolLM2-135M", False: "SmolLM2-135M's shapes, N(0, 0.02^2)"}
NOTES = [
    "weights in memory; in every tensor 1% of the words are moved by one unit in the last place",
    "speeds count the model's bytes; encode makes the payload as bytes, apply starts from them",
    "graftwork checks the SHA-256 of every chunk before it changes the target's own words, and can undo; `changed "
    "chunks` is apply_(check='changed'), which skips the chunks that stay; fireworks checks an Adler-32 of each tensor "
    "afterwards and makes new tensors",
    "copy: the model's bytes copied in memory",
    "peak_extra_mb: RssAnon of a fresh process that holds weights and payload, read from outside every 2 ms: its "
    "highest during apply minus the one before; what the first call ever sets up is in it",
    "every result is compared bit for bit, the memory runs' too",
]
CHILD = """
import sys, torch
from pathlib import Path
from safetensors.torch import load_file
from bench.sync import APPLY
name, base, tuned, payload, threads = sys.argv[1:]
words = {key: tensor.clone() for key, tensor in load_file(base).items()}
payload, apply_ = Path(payload).read_bytes(), APPLY[name]
print("ready", flush=True)
sys.stdin.readline()
result = apply_(words, payload, int(threads))
print("done", flush=True)
sys.stdin.readline()
from bench.sync import equal
sys.exit(not equal(result, load_file(tuned)))
"""

Encode = Callable[[Tensors, Tensors, int], bytes]
Apply = Callable[[Tensors, bytes, int], Tensors]


def _encode(base: Tensors, tuned: Tensors, threads: int) -> bytes:
    from graftwork.store.sync import encode

    return encode(base, tuned, threads=threads)


def _apply(words: Tensors, payload: bytes, threads: int, *, check: str = "all") -> Tensors:
    from graftwork.store.sync import apply_

    apply_(words, payload, check=check, threads=threads)
    return words


ENCODE: dict[str, Encode] = {
    "graftwork": _encode,
    PEER: lambda base, tuned, threads: fireworks_encode(base, tuned, KIND, threads),
}
APPLY: dict[str, Apply] = {
    "graftwork": _apply,
    "graftwork, changed chunks": partial(_apply, check="changed"),
    PEER: lambda words, payload, threads: fireworks_apply(words, payload, KIND, threads),
}


def measure(options: Options) -> Measurement:
    """Time encode and apply in turn, then take the peak memory of apply in processes of their own."""
    taken = Measurement([], notes=NOTES)
    case, base = _model(quick=options.quick)
    generator = torch.Generator().manual_seed(0)
    tuned = {name: UPDATES[STEP_UPDATE](tensor, generator) for name, tensor in base.items()}
    (peer,) = (peer for peer in memory_peers("bfloat16") if peer.name == PEER)
    names = [name for name in APPLY if name != PEER or peer.version]
    payloads = {name: ENCODE[name](base, tuned, core_count()) for name in names if name in ENCODE}
    taken.rows += _timed(case, base, tuned, payloads, peer, options)
    with work_folder(options.workdir) as folder:
        for row in taken.rows:
            if row.operation == "apply":
                payload = payloads.get(row.implementation, payloads["graftwork"])
                row.facts["peak_extra_mb"] = _peak(row.implementation, base, tuned, payload, folder)
    taken.failures += _differences(base, tuned, payloads, names)
    if not peer.version:
        taken.rows.append(_row("encode", PEER, case, base, status="not installed"))
    taken.targets += _targets(taken.rows)
    return taken


def _model(*, quick: bool) -> tuple[str, Tensors]:
    """SmolLM2 in bf16, or noise of the same shapes where it is not installed (quick: its last layers)."""
    folder = smollm2_folder()
    if folder:
        weights = load_file(folder / "model.safetensors")
    else:
        generator = torch.Generator().manual_seed(0)
        weights = {
            name: torch.randn(shape, generator=generator).mul_(0.02).bfloat16()
            for name, shape in smollm2_shapes().items()
        }
    if quick:
        weights = {name: tensor for name, tensor in weights.items() if ".layers.2" in name}
    return MODEL_CASES[folder is not None] + (" (part)" if quick else ""), weights


def smollm2_shapes() -> dict[str, tuple[int, ...]]:
    """The tensors of SmolLM2-135M: 30 layers of width 576, the embedding tied to the head."""
    width, inner, keys = 576, 1536, 192
    layer = {
        "input_layernorm": (width,),
        "mlp.down_proj": (width, inner),
        "mlp.gate_proj": (inner, width),
        "mlp.up_proj": (inner, width),
        "post_attention_layernorm": (width,),
        "self_attn.k_proj": (keys, width),
        "self_attn.o_proj": (width, width),
        "self_attn.q_proj": (width, width),
        "self_attn.v_proj": (keys, width),
    }
    shapes = {"model.embed_tokens.weight": (49152, width)}
    for index in range(30):
        shapes |= {f"model.layers.{index}.{name}.weight": shape for name, shape in layer.items()}
    return shapes | {"model.norm.weight": (width,)}


def _row(operation: str, name: str, case: str, base: Tensors, status: str = "measured") -> Row:
    nbytes = sum(tensor.nbytes for tensor in base.values())
    return Row(operation, name, "bfloat16", (nbytes // 2,), case, bytes=nbytes, status=status)


def _timed(
    case: str, base: Tensors, tuned: Tensors, payloads: dict[str, bytes], peer: Peer, options: Options
) -> list[Row]:
    contest, words = Contest(), {name: tensor.clone() for name, tensor in base.items()}
    copy = _row("copy", "floor", case, base)
    probe = copy_probe(2 * copy.bytes)
    for threads in thread_counts():
        contest.add(copy, str(threads), Job(probe, threads))
    for name, payload in payloads.items():
        row = _row("encode", name, case, base)
        row.facts["payload_percent"] = 100 * len(payload) / row.bytes
        _enter(contest, row, peer, partial(ENCODE[name], base, tuned))
    for name, apply_ in APPLY.items():
        if name != PEER or PEER in payloads:
            payload = payloads.get(name, payloads["graftwork"])
            row = _row("apply", name, case, base)
            _enter(contest, row, peer, partial(apply_, words, payload), lambda: _restore(words, base))
    rows = contest.run(rounds=2 if options.quick else 9, budget=6.0, min_repeats=2)
    settle()
    for row in rows:
        if row is not copy:
            for label, run in row.runs.items():
                share = copy.runs[label].seconds.median / run.seconds.median
                row.facts[f"memcpy_percent_{label}"] = 100 * share
    return rows


def _enter(
    contest: Contest,
    row: Row,
    peer: Peer,
    call: Callable[[int], object],
    prepare: Callable[[], object] | None = None,
) -> None:
    counts = thread_counts()
    if row.implementation == PEER:
        row.version = peer.version or ""
        counts = tuple(peer.threads(counts))
    for threads in counts:
        contest.add(row, str(threads), Job(partial(call, threads), threads, prepare))


def _restore(words: Tensors, base: Tensors) -> None:
    for name, tensor in base.items():
        words[name].copy_(tensor)


def _peak(name: str, base: Tensors, tuned: Tensors, payload: bytes, folder: Path) -> float:
    files = [folder / part for part in ("base.safetensors", "tuned.safetensors", "payload")]
    if not files[0].exists():
        save_file(base, files[0])
        save_file(tuned, files[1])
    files[2].write_bytes(payload)
    return peak_above_start(CHILD, name, *map(str, files), str(core_count()))[0]


def _differences(base: Tensors, tuned: Tensors, payloads: dict[str, bytes], names: list[str]) -> list[str]:
    """Which ways there do not lead from ``base`` to ``tuned``."""
    found = []
    for name in names:
        words = {key: tensor.clone() for key, tensor in base.items()}
        result = APPLY[name](words, payloads.get(name, payloads["graftwork"]), core_count())
        if not equal(result, tuned):
            found.append(f"{name} made other weights")
    return found


def equal(got: Tensors, wanted: Tensors) -> bool:
    """Whether two sets of tensors agree in names and bits."""
    return got.keys() == wanted.keys() and all(same_bits(got[name], wanted[name]) for name in wanted)


def _targets(rows: list[Row]) -> list[Target]:
    found: dict[tuple[str, str], Any] = {(row.operation, row.implementation): row for row in rows}
    size = found["encode", "graftwork"].facts["payload_percent"]
    targets = [Target("payload of a step", size, 0.65, "% of the model")]
    for operation, limit in (("encode", 1.0), ("apply", 2.0)):
        run = found[operation, "graftwork"].runs.get("2")
        if run:
            speed = run.bytes_per_second / 1e9
            targets.append(Target(f"{operation}, 2 threads", speed, limit, "GB/s", at_least=True))
    return targets
