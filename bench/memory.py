"""Peak anonymous memory of pack and checkout on a large sharded checkpoint, above what ``import torch`` takes."""

from __future__ import annotations

import filecmp
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

from bench.checkpoints import work_folder
from bench.machine import ROOT, core_count
from bench.record import Measurement, Options, Row, Target

TESTS = ("tests/store",)
CODECS = ("auto", "small")
ALLOWANCE_MB = 300
NOTES = [
    "RssAnon of a fresh process, read from outside every 2 ms, minus its RssAnon right after import torch; mapped "
    "files do not count, since the system can drop them",
    "VmHWM (all resident memory at its highest, mapped files included) stands beside it for information",
]
CHILD = """
import sys, torch
print("ready", flush=True)
sys.stdin.readline()
from graftwork.store import open_store, pack
job, codec, base, tuned, store, restored, threads = sys.argv[1:]
if job == "pack":
    pack(base, tuned, out=store, codec=codec, threads=int(threads))
else:
    open_store(store, base=base).checkout("tuned", restored, threads=int(threads))
print("done", flush=True)
sys.stdin.readline()
"""


def measure(options: Options) -> Measurement:
    """Pack and check out a pair of 4.3 GB each (quick: 0.5 GB), sharded, the largest tensor 268 MB (34 MB)."""
    shards, per_shard, numel = (4, 4, 16 << 20) if options.quick else (4, 4, 128 << 20)
    taken = Measurement([], notes=NOTES)
    tensor_mb = 2 * numel / 1e6
    limit = ALLOWANCE_MB + 2 * tensor_mb
    # The default folder is on disk here: files in memory would take up what is being measured.
    with work_folder(options.workdir or Path("/var/tmp")) as folder:
        _generate(folder, shards, per_shard, numel)
        for codec in CODECS:
            for job in ("pack", "checkout"):
                row = Row(job, f"graftwork {codec}", "bfloat16", (shards * per_shard, numel), "sharded")
                row.facts = {"checkpoint_mb": tensor_mb * shards * per_shard, "largest_tensor_mb": tensor_mb}
                row.facts |= _peak(job, codec, folder)
                taken.rows.append(row)
                peak = row.facts["peak_rss_anon_mb"]
                taken.targets.append(Target(f"peak RssAnon of {job}, {codec}", peak, limit, "MB"))
            taken.failures += _differences(folder, codec)
            for made in ("store", "restored"):
                shutil.rmtree(folder / made)
    return taken


def _peak(job: str, codec: str, folder: Path) -> dict[str, float]:
    places = [str(folder / name) for name in ("base", "tuned", "store", "restored")]
    start = time.perf_counter()
    peak, highest = peak_above_start(CHILD, job, codec, *places, str(core_count()))
    return {
        "peak_rss_anon_mb": peak,
        "vm_hwm_mb": highest,
        "seconds": time.perf_counter() - start,
    }


def _differences(folder: Path, codec: str) -> list[str]:
    names = [path.name for path in (folder / "tuned").iterdir()]
    same, *_ = filecmp.cmpfiles(folder / "tuned", folder / "restored", names, shallow=False)
    return [f"{codec}: {name} came back different" for name in names if name not in same]


def _generate(folder: Path, shards: int, per_shard: int, numel: int) -> None:
    """Write the pair in a process of its own, so that its memory goes back to the system."""
    call = f"write_sharded_pair(Path(sys.argv[1]), shards={shards}, tensors_per_shard={per_shard}, numel={numel})"
    code = f"import sys; from pathlib import Path; from bench.checkpoints import write_sharded_pair; {call}"
    subprocess.run([sys.executable, "-c", code, str(folder)], cwd=ROOT, check=True)


def peak_above_start(code: str, *arguments: str) -> tuple[float, float]:
    """Run Python code in a fresh process; how far its RssAnon rises in MB, and the process's VmHWM.

    The code prints ``ready``, reads a line, does what is measured, prints ``done``, and reads another line; what it
    does after that is not measured, and it may fail there.
    """
    command = [sys.executable, "-c", code, *arguments]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin and child.stdout
        child.stdout.readline()
        start = peak = _status_mb(child.pid, "RssAnon")
        child.stdin.write("go\n")
        child.stdin.flush()
        while not select.select([child.stdout], [], [], 0)[0]:
            peak = max(peak, _status_mb(child.pid, "RssAnon"))
            time.sleep(0.002)
        if child.stdout.readline().strip() != "done":
            raise RuntimeError(f"the process failed with exit code {child.wait()}: {arguments}")
        highest = _status_mb(child.pid, "VmHWM")
        child.stdin.write("end\n")
        child.stdin.flush()
        if child.wait():
            raise RuntimeError(f"the process failed in the end with exit code {child.wait()}: {arguments}")
    return peak - start, highest


def _status_mb(pid: int, field: str) -> float:
    """A field of the process's status; 0 when it has just ended and holds no memory any more."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024 / 1e6
    return 0.0
