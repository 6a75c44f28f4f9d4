"""Files and folders: whole, or as they were."""

import hashlib
import os
import pathlib

import pytest

from mmssl import files
from mmssl.errors import UserError


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    files.write(path, "ä")
    assert path.read_bytes() == "ä".encode()
    assert files.sha256(path) == hashlib.sha256("ä".encode()).hexdigest()

    def interrupted(self, target):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            files.write(path, b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    assert path.read_text() == "ä"
    files.write(path, b"new")
    assert path.read_text() == "new"


def test_a_folders_files_are_on_the_disk_before_its_name(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.fstat(fd).st_ino))
    with files.whole_folder(tmp_path / "x", marker="m") as new:
        (new / "deep").mkdir()
        made = [new / "m", new / "deep" / "n"]
        for path in made:
            path.touch()
        nodes = {path.stat().st_ino for path in made}
    assert set(synced) == nodes


def test_an_old_folder_survives_a_kill_between_the_renames(tmp_path):
    out = tmp_path / "ds"
    old = tmp_path / ".ds.partial" / "old"
    old.mkdir(parents=True)
    (old / "m").write_text("precious")
    with (
        pytest.raises(UserError, match="already there"),
        files.whole_folder(out, marker="m"),
    ):
        pass
    assert (out / "m").read_text() == "precious"


def test_interrupt_cleans_up(tmp_path):
    with (
        pytest.raises(KeyboardInterrupt),
        files.whole_folder(tmp_path / "x", marker="m"),
    ):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
