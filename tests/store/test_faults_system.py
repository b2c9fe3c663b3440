"""What a system does to a program: file systems that cannot be written, signals, short reads, files that change."""

from __future__ import annotations

import errno
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType

import pytest
from typer.testing import CliRunner

from graftwork.checkpoint.files import observe
from graftwork.cli import app
from graftwork.errors import SourceChanged
from graftwork.store import diff, open_store, pack
from tests.checkpoint.faults import at_step, steps_of
from tests.generators.checkpoints import file_hashes
from tests.generators.raw_tensors import raw_tensor, write_raw
from tests.store.every_method import write_every_method


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``base``, ``tuned``, ``store`` with ``tuned``; not to be changed."""
    folder = tmp_path_factory.mktemp("system")
    write_every_method(folder)
    (folder / "tuned" / "config.json").write_text('{"name": "tuned"}')
    (folder / "tuned" / "tokenizer.json").write_text("{}" * 700_000)
    pack(folder / "base", folder / "tuned", out=folder / "store", threads=1)
    return folder


@pytest.fixture
def world(models: Path, tmp_path: Path) -> Path:
    """A copy of ``models``, to be changed."""
    return shutil.copytree(models, tmp_path / "world")


# ---- file systems that cannot be written


@contextmanager
def unwritable(monkeypatch: pytest.MonkeyPatch, folder: Path, code: int) -> Iterator[None]:
    """Every call that would change something below ``folder`` fails, as for a user without rights. (Root has all.)"""

    def guarded(name: str, writes: Callable[..., bool] = lambda *_, **__: True) -> Callable[..., object]:
        call = getattr(os, name)

        def run(path: str | os.PathLike[str], *args: object, **options: object) -> object:
            if not isinstance(path, int) and Path(path).is_relative_to(folder) and writes(path, *args):
                raise OSError(code, os.strerror(code), str(path))
            return call(path, *args, **options)

        return run

    def opens_to_write(path: str, flags: int, *_: object) -> bool:
        return bool(flags & (os.O_WRONLY | os.O_RDWR)) or (
            bool(flags & os.O_CREAT) and not Path(path).exists()
        )

    with monkeypatch.context() as patched:
        for name in ("mkdir", "rename", "replace", "unlink", "rmdir"):
            patched.setattr(os, name, guarded(name))
        patched.setattr(os, "open", guarded("open", opens_to_write))
        yield


CODES = [errno.EROFS, errno.EACCES]


@pytest.mark.parametrize("locks", ["locks", "no locks"])
@pytest.mark.parametrize("code", CODES)
def test_a_store_that_cannot_be_written_is_read(
    world: Path, monkeypatch: pytest.MonkeyPatch, code: int, locks: str
) -> None:
    if locks == "no locks":  # copied without them
        for lock in (world / "store").glob("*.lock"):
            lock.unlink()
    with unwritable(monkeypatch, world / "store", code), open_store(world / "store", world / "base") as store:
        assert [entry.name for entry in store.entries()] == ["tuned"]
        assert store.verify(deep=True).ok
        assert store.tensor("tuned", "ordrans").shape == (4000,)
        store.checkout("tuned", world / "out")
        assert diff(world / "base", f"{world / 'store'}:tuned", store_base=world / "base").tensors
        pack(
            f"{world / 'store'}:tuned", {"x": world / "base"}, out=world / "other", store_base=world / "base"
        )
    assert file_hashes(world / "out") == file_hashes(world / "tuned")


WRITERS: dict[str, Callable[[Path], object]] = {
    "pack": lambda world: pack(world / "base", {"x": world / "base"}, out=world / "store"),
    "pack a new one": lambda world: pack(world / "base", world / "tuned", out=world / "store" / "sub" / "x"),
    "remove": lambda world: open_store(world / "store").remove("tuned"),
    "gc": lambda world: open_store(world / "store").gc(),
    "squash": lambda world: open_store(world / "store").squash("tuned", world / "base"),
}


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("writer", WRITERS)
def test_nobody_writes_into_a_store_that_cannot_be_written(
    world: Path, monkeypatch: pytest.MonkeyPatch, writer: str, code: int
) -> None:
    before = file_hashes(world)
    with unwritable(monkeypatch, world / "store", code), pytest.raises(OSError) as caught:
        WRITERS[writer](world)
    assert caught.value.errno == code and str(world / "store") in str(caught.value.filename)
    assert file_hashes(world) == before


@pytest.mark.parametrize("code", CODES)
def test_a_target_that_cannot_be_written(world: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    (world / "there").mkdir()
    for target in ("there/out", "there/deep/er/out"):
        with (
            unwritable(monkeypatch, world / "there", code),
            open_store(world / "store", world / "base") as store,
            pytest.raises(OSError) as caught,
        ):
            store.checkout("tuned", world / target)
        assert caught.value.errno == code and str(world / "there") in str(caught.value.filename)
    assert not list((world / "there").iterdir())


def test_the_program_says_it_in_words(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    with unwritable(monkeypatch, world / "store", errno.EROFS):
        result = CliRunner().invoke(app, ["remove", str(world / "store"), "tuned"])
    assert result.exit_code == 2 and "Read-only file system" in result.output
    assert str(world / "store") in result.output and "Traceback" not in result.output


# ---- signals, and calls that do less than they were asked for


def run_all(models: Path, folder: Path, threads: int) -> None:
    """Pack, check out, verify, remove, collect; and compare with what is wanted."""
    pack(models / "base", models / "tuned", out=folder / "store", threads=threads)
    assert file_hashes(folder / "store") == file_hashes(models / "store")
    with open_store(folder / "store", models / "base") as store:
        store.checkout("tuned", folder / "out", threads=threads)
        assert store.verify(deep=True).ok
        store.remove("tuned")
        assert store.gc().files >= 4
    assert file_hashes(folder / "out") == file_hashes(models / "tuned")


@pytest.mark.parametrize("threads", [1, 3])
def test_signals_that_are_handled_disturb_nothing(models: Path, tmp_path: Path, threads: int) -> None:
    """System calls are interrupted (EINTR) and go on."""
    caught = []

    def handle(number: int, frame: FrameType | None) -> None:
        caught.append(number)

    before = signal.signal(signal.SIGALRM, handle)
    signal.siginterrupt(signal.SIGALRM, True)
    signal.setitimer(signal.ITIMER_REAL, 2e-4, 2e-4)
    try:
        run_all(models, tmp_path, threads)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert caught


@pytest.mark.parametrize("threads", [1, 3])
def test_short_reads_and_writes_are_continued(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    pwrite, preadv = os.pwrite, os.preadv
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, memoryview(data)[:1009], at))
    monkeypatch.setattr(os, "preadv", lambda fd, views, at: preadv(fd, [memoryview(views[0])[:997]], at))
    run_all(models, tmp_path, threads)


@pytest.mark.parametrize("name", ["pwrite", "preadv", "fsync"])
def test_an_error_of_the_system_names_the_file(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """One that comes in the midst of the work, on a thread of its own."""
    call, left = getattr(os, name), iter(range(3))

    def fail(*arguments: object) -> object:
        if next(left, None) is None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return call(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(os, name, fail)
        with pytest.raises(OSError) as caught:
            pack(models / "base", models / "tuned", out=tmp_path / "store", threads=3)
    assert caught.value.errno == errno.EIO and Path(caught.value.filename).is_relative_to(tmp_path.parent)
    run_all(models, tmp_path, 3)


def interrupted(run: Callable[[], object], seconds: float) -> None:
    """Run it in a child process, to which Ctrl-C comes after a while."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    child = os.fork()
    if child == 0:
        try:
            signal.signal(signal.SIGALRM, interrupt)
            signal.setitimer(signal.ITIMER_REAL, seconds)
            run()
        finally:
            os._exit(0)
    os.waitpid(child, 0)


@pytest.mark.slow
def test_an_interrupt_at_any_moment(models: Path, tmp_path: Path) -> None:
    """Wherever it comes, the next run finishes."""
    for moment in range(60):
        store = tmp_path / str(moment)
        run = partial(pack, models / "base", models / "tuned", out=store, threads=2)
        interrupted(run, 1e-3 + 2e-3 * moment)
        run()
        with open_store(store) as opened:
            opened.gc()
        assert file_hashes(store) == file_hashes(models / "store")


# ---- sources that change


def appended(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b" ")


def shortened(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def rewritten(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(b"\x5a")


def replaced(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(bytes(path.stat().st_size))
    other.replace(path)


@pytest.mark.parametrize(
    "file", ["tuned/model.safetensors", "tuned/config.json", "tuned/tokenizer.json", "base/model.safetensors"]
)
@pytest.mark.parametrize("alter", [appended, shortened, rewritten, replaced, Path.unlink])
def test_a_source_that_changes_at_any_step(
    models: Path, tmp_path: Path, alter: Callable[[Path], None], file: str
) -> None:
    """A file is altered before any step of the writer: nothing is committed, or what was there before the change."""
    write_raw(tmp_path / "first", {"ordrans": raw_tensor("BF16", (300,), 77)})
    pack(models / "base", tmp_path / "first", out=tmp_path / "store", threads=1)
    before = file_hashes(tmp_path / "store")

    def run(world: Path) -> None:
        pack(world / "base", world / "tuned", out=world / "store", threads=1)

    def new_world(name: str) -> Path:
        for model in ("base", "tuned"):
            shutil.copytree(models / model, tmp_path / name / model)
        shutil.copytree(tmp_path / "store", tmp_path / name / "store")
        return tmp_path / name

    world = new_world("counted")
    steps = steps_of(lambda: run(world))
    wanted = file_hashes(world / "store")
    last_look = max(i for i, step in enumerate(steps) if step.path.suffix == ".safetensors") + 1
    for count in range(0, len(steps), 2):
        world = new_world(f"world-{count}")
        try:
            with observe(before=at_step(count, lambda step, world=world: alter(world / file))):
                run(world)
        except SourceChanged as error:
            assert count <= last_look and str(error.file).endswith(file)
            with open_store(world / "store") as store:
                store.gc()
            assert file_hashes(world / "store") == before
        else:
            assert count > last_look and file_hashes(world / "store") == wanted
        shutil.rmtree(world)
