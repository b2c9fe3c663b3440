from __future__ import annotations

import os

import pytest

from graftwork.checkpoint.reader import open_checkpoint
from graftwork.errors import CheckpointError
from tests.checkpoint.handmade import container, entry, make_tree, shard, sharded

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"


def refused(root, *, file, tensor=None):
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(root)
    assert caught.value.file == str(root / file)
    assert caught.value.tensor == tensor
    assert caught.value.remedy
    return caught.value


def index(*, total=12, **weight_map):
    return {
        "metadata": {"total_size": total},
        "weight_map": {"a": FIRST, "b": FIRST, "c": SECOND} | weight_map,
    }


def test_a_sharded_model(tmp_path):
    with open_checkpoint(sharded(tmp_path)) as checkpoint:
        assert list(checkpoint.headers) == [FIRST, SECOND]
        assert list(checkpoint.tensors) == ["a", "b", "c"]
        assert checkpoint.other_files == ("config.json", INDEX, "tokenizer/vocab.txt")
        assert checkpoint.config == {"model_type": "toy"}


UNSAFE = [
    "../model.safetensors",
    "/etc/model.safetensors",
    "sub\\model.safetensors",
    "a/../../m.safetensors",
    "",
]


@pytest.mark.parametrize("path", UNSAFE)
def test_a_shard_path_that_leaves_the_folder(tmp_path, path):
    make_tree(tmp_path, {"model.safetensors": shard("c")})
    error = refused(sharded(tmp_path / "root", index=index(c=path)), file=INDEX, tensor="c")
    assert "unsafe" in error.what and repr(path) in error.got


@pytest.mark.parametrize("name", [SECOND, INDEX, "config.json", "tokenizer/more.txt"])
def test_a_link_out_of_the_folder(tmp_path, name):
    root = sharded(tmp_path / "root")
    (tmp_path / "outside").write_bytes(shard("c"))
    (root / name).unlink(missing_ok=True)
    (root / name).symlink_to(tmp_path / "outside")
    assert "leads out of the folder" in refused(root, file=name).what


def test_a_link_inside_the_folder_is_read(tmp_path):
    root = make_tree(tmp_path, {"weights/real.bin": shard("a")})
    (root / "model.safetensors").symlink_to("weights/real.bin")
    with open_checkpoint(root) as checkpoint:
        assert list(checkpoint.tensors) == ["a"] and checkpoint.other_files == ("weights/real.bin",)


def test_a_linked_folder_is_refused(tmp_path):
    root = sharded(tmp_path / "root")
    (root / "again").symlink_to(".")
    assert "a link to a folder" in refused(root, file="again").got


def hub_cache(tmp_path, repository="models--org--name"):
    cached = tmp_path / repository
    make_tree(cached, {"blobs/1f": shard("a"), "blobs/2e": b"{}", "refs/main": "abc"})
    snapshot = cached / "snapshots" / "abc"
    (snapshot / "onnx").mkdir(parents=True)
    (snapshot / "model.safetensors").symlink_to("../../blobs/1f")
    (snapshot / "onnx" / "config.json").symlink_to("../../../blobs/2e")
    return snapshot


def test_a_hub_cache_is_read_through_its_links(tmp_path):
    with open_checkpoint(hub_cache(tmp_path)) as checkpoint:
        assert list(checkpoint.tensors) == ["a"] and checkpoint.other_files == ("onnx/config.json",)
        assert checkpoint.read_file("onnx/config.json") == b"{}"
        checkpoint.check_unchanged()


def test_a_hub_cache_is_no_way_out(tmp_path):
    make_tree(tmp_path, {"secret": b"x", "models--other--x/blobs/1": b"x"})
    for target in ["../../../secret", "../../refs/main", "../../../models--other--x/blobs/1", "../../blobs"]:
        snapshot = hub_cache(tmp_path)
        (snapshot / "extra").symlink_to(target)
        refused(snapshot, file="extra")
        (snapshot / "extra").unlink()
        for path in [*snapshot.glob("*.safetensors"), *snapshot.glob("onnx/*")]:
            path.unlink()
        (snapshot / "onnx").rmdir()
    with pytest.raises(CheckpointError, match="leads out"):
        open_checkpoint(hub_cache(tmp_path, "not-a-cache"))


def test_a_missing_shard(tmp_path):
    error = refused(sharded(tmp_path, second=None), file=SECOND, tensor="c")
    assert "missing" in error.what


def test_shard_names_that_differ_in_case(tmp_path):
    root = sharded(tmp_path, index=index(c=FIRST.upper().replace("SAFETENSORS", "safetensors")))
    assert "differ only in case" in refused(root, file=INDEX).what


def test_a_tensor_in_two_shards(tmp_path):
    error = refused(sharded(tmp_path, second=shard("c", "a")), file=SECOND, tensor="a")
    assert FIRST in error.got and SECOND in error.got


def test_a_tensor_listed_twice(tmp_path):
    text = f'{{"weight_map":{{"a":"{FIRST}","b":"{FIRST}","c":"{SECOND}","a":"{SECOND}"}}}}'
    assert "holds a key twice" in refused(sharded(tmp_path, index=text), file=INDEX, tensor="a").what


@pytest.mark.parametrize(
    ("second", "tensor"), [(shard("c", "d"), "d"), (shard("x"), "x"), (container({}), "c")]
)  # in a shard but not in the index; of another save; in the index but in no shard
def test_shards_and_index_of_two_saves(tmp_path, second, tensor):
    error = refused(sharded(tmp_path, second=second), file=INDEX, tensor=tensor)
    assert "do not belong together" in error.what


def test_a_tensor_in_another_shard_than_the_index_says(tmp_path):
    error = refused(sharded(tmp_path, index=index(b=SECOND)), file=INDEX, tensor="b")
    assert FIRST in error.got and SECOND in error.wanted


@pytest.mark.parametrize("total", [0, 999, 12.0, 10.125])
def test_a_total_size_that_is_off_is_a_mere_hint(tmp_path, total):
    open_checkpoint(sharded(tmp_path, index=index(total=total))).close()


@pytest.mark.parametrize("total", [-1, "12", None, True, [], float("nan"), float("inf")])
def test_a_total_size_that_is_no_size(tmp_path, total):
    assert "total_size" in refused(sharded(tmp_path, index=index(total=total)), file=INDEX).what


def test_no_total_size_is_fine(tmp_path):
    open_checkpoint(sharded(tmp_path, index={"weight_map": index()["weight_map"], "metadata": None})).close()


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
        (b'{"weight_map":"\xff"}', "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "no weight_map"),
        ("{}", "no weight_map"),
        ('{"weight_map":[]}', "no weight_map"),
    ],
)
def test_a_broken_index(tmp_path, text, what):
    assert what in refused(sharded(tmp_path, index=text), file=INDEX).what


@pytest.mark.parametrize("shard_name", [1, None, ["x"], {}])
def test_an_index_entry_that_is_no_name(tmp_path, shard_name):
    assert (
        "names no file" in refused(sharded(tmp_path, index=index(c=shard_name)), file=INDEX, tensor="c").what
    )


def test_an_index_to_pickles(tmp_path):
    error = refused(sharded(tmp_path, index=index(c="pytorch_model.bin")), file=INDEX, tensor="c")
    assert "not safetensors" in error.what and "save_file" in error.remedy


def test_a_whole_model_beside_an_index_is_ambiguous(tmp_path):
    root = make_tree(sharded(tmp_path), {"model.safetensors": shard("a")})
    assert "mixes two saves" in refused(root, file="model.safetensors").what


def test_other_safetensors_beside_an_index_are_other_files(tmp_path):
    root = make_tree(sharded(tmp_path), {"consolidated.safetensors": shard("a")})
    with open_checkpoint(root) as checkpoint:
        assert (
            "consolidated.safetensors" in checkpoint.other_files
            and "consolidated.safetensors" not in checkpoint.headers
        )


def test_an_index_of_another_name(tmp_path):
    root = sharded(tmp_path, index=None)
    make_tree(root, {"unet.safetensors.index.json": index()})
    open_checkpoint(root).close()
    make_tree(root, {"vae.safetensors.index.json": index()})
    with pytest.raises(CheckpointError, match="several shard indexes"):
        open_checkpoint(root)
    make_tree(root, {INDEX: index()})
    open_checkpoint(root).close()


def test_several_files_without_an_index_are_one_model(tmp_path):
    root = make_tree(tmp_path, {"b.safetensors": shard("x"), "a.safetensors": shard("z", "y")})
    with open_checkpoint(root) as checkpoint:
        assert list(checkpoint.tensors) == ["z", "y", "x"]
    make_tree(root, {"c.safetensors": shard("y")})
    error = refused(root, file="c.safetensors", tensor="y")
    assert "a.safetensors" in error.got and "c.safetensors" in error.got


def test_shards_without_an_index_must_be_all_there(tmp_path):
    root = sharded(tmp_path, index=None)
    open_checkpoint(root).close()
    (root / SECOND).unlink()
    with pytest.raises(CheckpointError, match="shards are missing"):
        open_checkpoint(root)


@pytest.mark.parametrize("pickle", ["pytorch_model.bin", "model.pt", "model.pth", "consolidated.00.pth"])
def test_a_folder_of_pickles_is_refused_with_the_command(tmp_path, pickle):
    make_tree(tmp_path, {pickle: b"\x80\x02", "config.json": {}})
    with pytest.raises(CheckpointError, match="no safetensors file") as caught:
        open_checkpoint(tmp_path)
    assert pickle in caught.value.got
    assert "weights_only=True" in caught.value.remedy and "save_file" in caught.value.remedy


def test_a_pickle_beside_safetensors_is_another_file(tmp_path):
    make_tree(tmp_path, {"model.safetensors": shard("a"), "pytorch_model.bin": b"\x80\x02"})
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.other_files == ("pytorch_model.bin",)


def test_models_one_folder_deeper_are_named(tmp_path):
    make_tree(tmp_path, {"unet/model.safetensors": shard("a"), "vae/model.safetensors": shard("a")})
    with pytest.raises(CheckpointError, match="unet, vae"):
        open_checkpoint(tmp_path)


def test_an_empty_folder(tmp_path):
    with pytest.raises(CheckpointError, match="no safetensors file"):
        open_checkpoint(tmp_path)


def test_a_fifo_or_device_in_the_folder(tmp_path):
    root = sharded(tmp_path / "root", second=None)
    os.mkfifo(root / SECOND)
    assert "a FIFO" in refused(root, file=SECOND).got
    (root / SECOND).unlink()
    (root / "notes").symlink_to("/dev/null")
    assert refused(root, file="notes").got


def test_unfinished_writes_and_bookkeeping_are_no_part_of_the_model(tmp_path):
    root = sharded(tmp_path / "root")
    make_tree(
        root,
        {f".{FIRST}.partial": b"", ".git/config": b"", ".cache/huggingface/x": b"", ".gitattributes": b""},
    )
    with open_checkpoint(root) as checkpoint:
        assert checkpoint.other_files == (".gitattributes", "config.json", INDEX, "tokenizer/vocab.txt")
    root.rename(tmp_path / ".root.partial")
    with pytest.raises(CheckpointError, match="unfinished write"):
        open_checkpoint(tmp_path / ".root.partial")


@pytest.mark.parametrize("config", ["[]", "1", "", "{", "[" * 100_000])
def test_a_configuration_that_is_no_object(tmp_path, config):
    refused(sharded(tmp_path, config=config), file="config.json")


def test_a_configuration_is_read_as_lenient_data(tmp_path):
    text = '\ufeff{"a": 1, "a": 2, "auto_map": {"AutoModel": "evil.Model"}, "x": NaN}'
    with open_checkpoint(sharded(tmp_path, config=text)) as checkpoint:
        assert checkpoint.config["a"] == 2 and checkpoint.config["auto_map"] == {"AutoModel": "evil.Model"}


def test_a_json_file_is_bounded_before_it_is_read(tmp_path):
    root = sharded(tmp_path)
    os.truncate(root / "config.json", 100_000_001)
    assert "too large" in refused(root, file="config.json").what


def test_a_broken_shard_is_named(tmp_path):
    broken = container({"c": entry("F32", (1,), 0, 4)}, b"123")
    assert "past the end" in refused(sharded(tmp_path, second=broken), file=SECOND, tensor="c").what


def test_a_folder_of_more_shards_than_open_files(tmp_path):
    import resource

    names = [f"s{i:03d}.safetensors" for i in range(200)]
    make_tree(tmp_path, {name: shard(name) for name in names})
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (150, hard))
    try:
        with open_checkpoint(tmp_path) as checkpoint:
            for info in checkpoint.tensors.values():
                checkpoint.read_into(info, 0, memoryview(bytearray(4)))
            checkpoint.check_unchanged()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


LAYOUTS = {
    "transformers": {
        "model.safetensors": ["model.embed_tokens.weight"],
        "config.json": {"architectures": ["LlamaForCausalLM"], "tie_word_embeddings": True},
        "generation_config.json": {},
        "tokenizer.json": {},
        "special_tokens_map.json": {},
        "chat_template.jinja": "{{ messages }}",
    },
    "peft": {
        "adapter_model.safetensors": ["base_model.lora_A.weight"],
        "adapter_config.json": {},
        "README.md": "",
    },
    "sentence-transformers": {
        "model.safetensors": ["embeddings.weight"],
        "modules.json": "[]",
        "1_Pooling/config.json": {},
        "2_Dense/model.safetensors": ["linear.weight"],
    },
    "diffusers component": {"diffusion_pytorch_model.safetensors": ["conv.weight"], "config.json": {}},
    "trainer checkpoint": {
        "model.safetensors": ["w"],
        "optimizer.pt": "",
        "rng_state.pth": "",
        "trainer_state.json": {},
        "training_args.bin": "",
    },
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_the_field(tmp_path, layout):
    files = LAYOUTS[layout]
    make_tree(tmp_path, {name: shard(*c) if isinstance(c, list) else c for name, c in files.items()})
    with open_checkpoint(tmp_path) as checkpoint:
        (model,) = checkpoint.headers
        assert {model, *checkpoint.other_files} == files.keys()
        assert list(checkpoint.tensors) == files[model]
