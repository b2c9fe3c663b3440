"""What graftwork is compared with really does the same work: peers restore, chains agree with the reference."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from bench.chains import NUMPY_CHAINS, TORCH_CHAINS
from bench.checkpoints import Case, write_sharded_pair, write_small_pair
from bench.lossless_delta import pair
from bench.peers import Peer, all_peers
from graftwork.reference import lossless_delta as reference


@pytest.mark.parametrize("peer", all_peers("bfloat16"), ids=lambda peer: peer.name)
@pytest.mark.filterwarnings("ignore:The given buffer is not writable", "ignore::DeprecationWarning")
def test_a_peer_restores_what_it_promises(peer: Peer, tmp_path: Path) -> None:
    if peer.version is None:
        pytest.skip(f"{peer.package} is not installed")
    base, tuned = (path / "model.safetensors" for path in write_small_pair(tmp_path))
    payload, restored = tmp_path / "peer.payload", tmp_path / "restored"
    for threads in peer.threads((1, 2)):
        peer.begin(base, payload)
        assert payload.exists() == peer.name.endswith("beside the base"), "it must not find an old payload"
        peer.pack(base, tuned, payload, threads)
        assert 0 < peer.stored_bytes(payload) < tuned.stat().st_size + 4096
        restored.unlink(missing_ok=True)
        peer.checkout(base, payload, restored, threads)
        assert peer.same(restored.read_bytes(), tuned.read_bytes())
        assert not peer.same(base.read_bytes(), tuned.read_bytes())
    peer.end(payload)
    assert {path.name for path in tmp_path.iterdir()} == {"base", "tuned", "restored"}


def test_lmzip_beside_the_base_codes_against_it(tmp_path: Path) -> None:
    alone, beside = (peer for peer in all_peers("bfloat16") if peer.package == "lmzip")
    if alone.version is None:
        pytest.skip("lmzip is not installed")
    base, tuned = tmp_path / "base.safetensors", tmp_path / "model.safetensors"
    first, second = pair(1 << 18, torch.bfloat16, "cpu")
    save_file({"weight": first}, base)
    save_file({"weight": second}, tuned)
    taken = []
    for peer in (alone, beside):
        payload = tmp_path / f"{peer.name}.payload"
        peer.begin(base, payload)
        peer.pack(base, tuned, payload, 1)
        taken.append(peer.stored_bytes(payload))
    assert taken[1] < 0.6 * taken[0]


@pytest.mark.parametrize("chains", [TORCH_CHAINS, NUMPY_CHAINS], ids=["torch", "numpy"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_chain_does_what_the_operation_does(chains: dict[str, object], dtype: torch.dtype) -> None:
    base, tuned = pair(4097, dtype, "cpu")
    base[:3] = torch.tensor([0.0, -1.0, 1.0])
    tuned[:3] = torch.tensor([-0.0, 1.0, 1.0])
    planes = reference.encode_ordinal_planes(base, tuned)
    assert torch.equal(chains["encode_ordinal_planes"](base, tuned, torch.zeros_like(planes)), planes)
    decoded = chains["decode_ordinal_planes"](base, planes, torch.zeros_like(tuned))
    assert torch.equal(decoded.view(torch.uint8), tuned.view(torch.uint8))
    for got, wanted in zip(
        chains["delta_stats"](base, tuned), reference.delta_stats(base, tuned), strict=True
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=0.0)
    for save in (torch.bfloat16, torch.float16):
        expected = reference.update_survival(base, tuned, save)
        for got, wanted in zip(chains["update_survival"](base, tuned, save), expected, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-12, atol=0.0)


def test_a_case_is_aligned_when_its_headers_agree(tmp_path: Path) -> None:
    base, tuned = write_small_pair(tmp_path)
    assert Case("small", "bfloat16", base, tuned).aligned
    (tmp_path / "other").mkdir()
    longer = write_small_pair(tmp_path / "other")[0] / "model.safetensors"
    data = bytearray(longer.read_bytes())
    data[8:12] = b' {"_'
    longer.write_bytes(data)
    assert not Case("changed", "bfloat16", base, tmp_path / "other" / "base").aligned


def test_a_sharded_pair_has_no_two_tensors_alike(tmp_path: Path) -> None:
    from graftwork.checkpoint import open_checkpoint

    base, tuned = write_sharded_pair(tmp_path, shards=2, tensors_per_shard=2, numel=8192)
    with open_checkpoint(base) as a, open_checkpoint(tuned) as b:
        assert list(a.tensors) == list(b.tensors) == [f"layers.{index}.weight" for index in range(4)]
        blobs = {
            bytes(side.tensor(name).view(torch.uint8).numpy()) for side in (a, b) for name in side.tensors
        }
    assert len(blobs) == 8
