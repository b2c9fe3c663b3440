"""Peak anonymous memory of pack and checkout on a large sharded checkpoint, above what ``import torch`` takes."""

from __future__ import annotations

import filecmp
import select
import subprocess
import sys
import time
from pathlib import Path

from bench.checkpoints import work_folder
from bench.machine import ROOT, core_count
from bench.record import Measurement, Options, Row, Target

TESTS = ("tests/store",)
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
job, base, tuned, store, restored, threads = sys.argv[1:]
if job == "pack":
    pack(base, tuned, out=store, codec="auto", threads=int(threads))
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
        for job in ("pack", "checkout"):
            start = time.perf_counter()
            peak, facts = _peak_above_torch(job, folder)
            row = Row(job, "graftwork auto", "bfloat16", (shards * per_shard, numel), "sharded")
            row.facts = {"checkpoint_mb": tensor_mb * shards * per_shard, "largest_tensor_mb": tensor_mb}
            row.facts |= {"peak_rss_anon_mb": peak, **facts, "seconds": time.perf_counter() - start}
            taken.rows.append(row)
            taken.targets.append(Target(f"peak RssAnon of {job}", peak, limit, "MB"))
        names = [path.name for path in (folder / "tuned").iterdir()]
        same, *_ = filecmp.cmpfiles(folder / "tuned", folder / "restored", names, shallow=False)
        taken.failures += [f"{name} came back different" for name in names if name not in same]
    return taken


def _generate(folder: Path, shards: int, per_shard: int, numel: int) -> None:
    """Write the pair in a process of its own, so that its memory goes back to the system."""
    call = f"write_sharded_pair(Path(sys.argv[1]), shards={shards}, tensors_per_shard={per_shard}, numel={numel})"
    code = f"import sys; from pathlib import Path; from bench.checkpoints import write_sharded_pair; {call}"
    subprocess.run([sys.executable, "-c", code, str(folder)], cwd=ROOT, check=True)


def _peak_above_torch(job: str, folder: Path) -> tuple[float, dict[str, float]]:
    """Run the job in a fresh process; its peak RssAnon in MB above the one after ``import torch``, and VmHWM."""
    places = [str(folder / name) for name in ("base", "tuned", "store", "restored")]
    command = [sys.executable, "-c", CHILD, job, *places, str(core_count())]
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
            raise RuntimeError(f"the {job} process failed with exit code {child.wait()}")
        highest = _status_mb(child.pid, "VmHWM")
        child.stdin.write("end\n")
    return peak - start, {"vm_hwm_mb": highest}


def _status_mb(pid: int, field: str) -> float:
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise ValueError(f"/proc/{pid}/status has no {field}")
