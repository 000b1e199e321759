"""Writes that are whole or absent, and folders that can always be found."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import resource
import signal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glassformer import files
from glassformer.errors import GlassformerError


@given(data=st.binary(max_size=2000))
def test_bytes_written_are_the_bytes_read_and_their_digest_is_sha256(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.mktemp("files") / "a file"
    files.write_bytes(path, b"older and longer" * 200)
    files.write_bytes(path, data)
    assert path.read_bytes() == data
    assert files.sha256(path) == hashlib.sha256(data).hexdigest()
    assert [entry.name for entry in path.parent.iterdir()] == ["a file"]


def test_json_is_readable_utf_8_and_refuses_what_json_cannot_hold(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    files.write_json(path, {"name": "Ōe", "list": [1, 2.5, None]})
    assert json.loads(path.read_bytes()) == {"name": "Ōe", "list": [1, 2.5, None]}
    assert "Ōe" in path.read_text("utf-8")
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(path, float("nan"))
    assert json.loads(path.read_bytes())["name"] == "Ōe"


def test_a_write_that_fails_half_way_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "kept"
    files.write_text(path, "old")
    # A real short write: no file of this process may grow beyond 10 bytes.
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            files.write_text(path, "new " * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["kept"]


@pytest.mark.parametrize("swap", [True, False])
def test_publishing_replaces_a_whole_folder_with_or_without_the_systems_swap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swap: bool
) -> None:
    if not swap:

        def absent(*_: object, **__: object) -> None:
            raise OSError("no such library")

        monkeypatch.setattr(ctypes, "CDLL", absent)
    for content in ("one", "two"):
        prepared = tmp_path / ".beside"
        prepared.mkdir()
        files.write_text(prepared / content, content)
        files.publish(prepared, tmp_path / "final")
        assert [entry.name for entry in tmp_path.iterdir()] == ["final"]
        assert [entry.name for entry in (tmp_path / "final").iterdir()] == [content]


def test_a_folder_waiting_for_its_successor_gets_its_name_back_after_a_crash(tmp_path: Path) -> None:
    for name in (".model.old-12", ".other.old-12", "other"):
        (tmp_path / name).mkdir()
    files.restore(tmp_path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["model", "other"]


def test_free_space_is_told_for_a_place_that_is_yet_to_be_made(tmp_path: Path) -> None:
    assert files.free_bytes(tmp_path / "not" / "yet") > 0


def test_the_named_home_is_used_and_made_spaces_and_accents_included(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLASSFORMER_HOME", str(tmp_path / "mon dépôt"))
    assert files.cache_folder() == tmp_path / "mon dépôt" / "cache"
    assert files.data_folder() == tmp_path / "mon dépôt" / "data"
    assert files.data_folder().is_dir()


def test_the_xdg_folders_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLASSFORMER_HOME", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    assert files.cache_folder() == tmp_path / "caches" / "glassformer"


@pytest.mark.parametrize("home", ["/dev/null/home", "/proc/home", None])
def test_without_a_home_that_can_be_written_a_temporary_folder_of_this_user_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: str | None
) -> None:
    for name in ("GLASSFORMER_HOME", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    if home:
        monkeypatch.setenv("HOME", home)
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        assert files.cache_folder() == tmp_path / f"glassformer-{os.getuid()}" / "cache"
    assert files.cache_folder().is_dir()


def test_with_nowhere_to_write_every_place_tried_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLASSFORMER_HOME", "/dev/null/nowhere")
    with pytest.raises(GlassformerError, match=r"/dev/null/nowhere/data.*Set GLASSFORMER_HOME"):
        files.data_folder()
    monkeypatch.delenv("GLASSFORMER_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null/caches")
    monkeypatch.setattr("tempfile.tempdir", "/dev/null")
    with pytest.raises(GlassformerError, match=r"/dev/null/caches/glassformer and /dev/null/glassformer-"):
        files.cache_folder()
