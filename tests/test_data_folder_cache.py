"""The cache of decoded pictures: made once, made anew when a file changes, never half-written, never trusted."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dartslight.data import ImageFolder, Pictures, folder_cache
from dartslight.errors import InputError


def save(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for i, name in enumerate(("a/0.png", "a/1.png", "b/0.png", "b/1.png")):
        save(tmp_path / "pictures" / name, i)
    return tmp_path / "pictures"


@pytest.fixture
def decodes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the pictures that have been decoded."""
    names: list[str] = []
    decode = folder_cache.decode

    def counted(path: Path, size: int | None) -> Any:
        names.append(path.name)
        return decode(path, size)

    monkeypatch.setattr(folder_cache, "decode", counted)
    return names


def load(root: Path, **options: Any) -> Pictures:
    return ImageFolder(str(root), **{"cache_dir": str(root.parent / "cache"), **options}).load(True)


def entries(root: Path) -> list[Path]:
    return sorted((root.parent / "cache").glob("*/*"))


def same(a: Pictures, b: Pictures) -> bool:
    return torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels) and a.classes == b.classes


def test_pictures_are_decoded_once(root: Path, decodes: list[str]) -> None:
    first = load(root)
    assert len(decodes) == 4
    assert same(load(root), first)
    assert len(decodes) == 4
    (entry,) = entries(root)
    assert sorted(path.name for path in entry.iterdir()) == ["images.npy", "labels.npy"]


def test_what_is_loaded_may_be_written_to_but_the_cache_stays(root: Path) -> None:
    pictures = load(root)
    kept = pictures.images.clone()
    pictures.images.zero_()
    assert torch.equal(load(root).images, kept)


def add(root: Path) -> None:
    save(root / "b" / "2.png", 7)


def remove(root: Path) -> None:
    (root / "a" / "1.png").unlink()


def change(root: Path) -> None:
    save(root / "a" / "1.png", 8)


def touch(root: Path) -> None:
    os.utime(root / "a" / "1.png", ns=(1, 1))


def rename(root: Path) -> None:
    (root / "a" / "1.png").rename(root / "a" / "2.png")


def move(root: Path) -> None:
    (root / "a" / "1.png").rename(root / "b" / "9.png")


def rename_class(root: Path) -> None:
    (root / "a").rename(root / "c")


@pytest.mark.parametrize("edit", [add, remove, change, touch, rename, move, rename_class])
def test_a_folder_that_changes_is_decoded_again(root: Path, decodes: list[str], edit: Callable[[Path], None]) -> None:
    load(root)
    (before,) = entries(root)
    edit(root)
    decodes.clear()
    pictures = load(root)
    assert len(decodes) == len(pictures) == len(list(root.glob("*/*.png")))
    assert same(pictures, load(root, cache_dir=str(root.parent / "fresh")))
    (after,) = entries(root)  # the old entry is gone
    assert after != before


def test_other_sizes_and_folders_have_entries_of_their_own(root: Path, decodes: list[str]) -> None:
    load(root)
    load(root, size=3)
    for name in ("a/0.png", "b/0.png"):
        save(root.parent / "others" / name, 5)
    load(root.parent / "others")
    assert len(entries(root)) == 3
    decodes.clear()
    assert load(root).images.shape == (4, 3, 6, 6)
    assert load(root, size=3).images.shape == (4, 3, 3, 3)
    assert decodes == []


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def scribble(path: Path) -> None:
    path.write_bytes(b"this is no array" * 20)


def pickled(path: Path) -> None:
    np.save(path, np.array([{"run": "me"}], dtype=object), allow_pickle=True)


def shorten(path: Path) -> None:
    np.save(path, np.load(path)[:-1])


@pytest.mark.parametrize("damage", [truncate, empty, scribble, pickled, shorten, Path.unlink])
@pytest.mark.parametrize("name", ["images.npy", "labels.npy"])
def test_a_damaged_entry_is_made_again(
    root: Path, decodes: list[str], name: str, damage: Callable[[Path], None]
) -> None:
    whole = load(root)
    kept = Pictures(whole.images.clone(), whole.labels, whole.classes)
    (entry,) = entries(root)
    del whole
    damage(entry / name)
    decodes.clear()
    assert same(load(root), kept)
    assert len(decodes) == 4
    decodes.clear()
    assert same(load(root), kept)
    assert decodes == []
    assert entries(root) == [entry]


def test_an_interrupted_run_leaves_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(folder_cache.np, "save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            load(root)
    assert entries(root) == []
    assert len(load(root)) == 4


def test_what_a_killed_run_left_is_removed_in_the_end(root: Path) -> None:
    load(root)
    (entry,) = entries(root)
    old, new = (entry.parent / f".building-{name}" for name in ("old", "new"))
    old.mkdir()
    new.mkdir()
    os.utime(old, (time.time() - 2 * 24 * 3600,) * 2)
    add(root)
    load(root)
    assert not old.exists()
    assert new.exists()  # another process may be at work there


def test_a_process_that_comes_second_keeps_the_entry_of_the_first(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both find no entry, both decode, and one is first."""
    ready = threading.Barrier(2)
    put = folder_cache._put

    def together(building: Path, entry: Path) -> None:
        ready.wait(timeout=20)
        put(building, entry)

    monkeypatch.setattr(folder_cache, "_put", together)
    results: list[Pictures] = []
    threads = [threading.Thread(target=lambda: results.append(load(root))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 2
    assert same(*results)
    assert len(entries(root)) == 1
    assert same(load(root), results[0])


def test_an_entry_that_is_there_already_is_left_alone(root: Path) -> None:
    load(root)
    (entry,) = entries(root)
    before = (entry / "images.npy").stat().st_ino
    building = entry.parent / ".building-second"
    building.mkdir()
    folder_cache._put(building, entry)
    assert (entry / "images.npy").stat().st_ino == before


def test_processes_that_decode_at_once(root: Path) -> None:
    for i in range(2, 200):
        save(root / "a" / f"{i}.png", i)
    code = (
        "import sys; from dartslight.data import ImageFolder; "
        "p = ImageFolder(sys.argv[1], cache_dir=sys.argv[2]).load(True); "
        "print(len(p), int(p.images.long().sum()))"
    )
    command = [sys.executable, "-c", code, str(root), str(root.parent / "cache")]
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [run.communicate(timeout=120)[0] for run in runs]
    pictures = load(root)
    assert outputs == [f"{len(pictures)} {int(pictures.images.long().sum())}\n"] * 2
    assert len(entries(root)) == 1


def test_a_cache_that_cannot_be_written(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root.parent / "file").touch()
    with pytest.raises(InputError, match=rf"cannot be written into '{root.parent}/file/.*--data\.cache_dir"):
        load(root, cache_dir=str(root.parent / "file"))

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folder_cache.os, "fsync", full)
    with pytest.raises(InputError, match=r"No space left on device"):
        load(root)
    assert entries(root) == []


def test_the_cache_is_in_the_users_cache_folder(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(root.parent / "xdg"))
    ImageFolder(str(root)).load(True)
    assert len(list((root.parent / "xdg" / "dartslight").glob("*/*/images.npy"))) == 1
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(root.parent / "home"))
    ImageFolder(str(root)).load(True)
    assert len(list((root.parent / "home" / ".cache" / "dartslight").glob("*/*/images.npy"))) == 1


def test_a_home_folder_may_be_named_by_its_sign(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(root.parent))
    assert len(ImageFolder("~/pictures", cache_dir="~/c").load(True)) == 4
    assert len(list((root.parent / "c").glob("*/*/images.npy"))) == 1
