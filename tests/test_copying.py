"""Filling a directory that has some of what it is to have."""

from __future__ import annotations

from pathlib import Path

from balsam_celery.copying import fill_tree


def test_filling_leaves_alone_what_is_there(tmp_path: Path) -> None:
    staged, work = tmp_path / "staged", tmp_path / "work"
    (staged / "deep" / "er").mkdir(parents=True)
    for name in ("changed", "left", "deep/er/left"):
        (staged / name).write_text("0")
    for name, to in (("link", "left"), ("turned", "left"), ("deep/tree", "er"), ("lost", "none")):
        (staged / name).symlink_to(to)
    fill_tree(staged, work)
    (work / "changed").write_text("1")
    (work / "turned").unlink()
    (work / "turned").mkdir()
    for name in ("left", "deep/er/left", "link"):
        (work / name).unlink()
    fill_tree(staged, work)
    files = {str(p.relative_to(work)): p.read_text() for p in work.rglob("*") if p.is_file()}
    assert files == {"changed": "1", "left": "0", "link": "0", "deep/er/left": "0"}
    links = {str(p.relative_to(work)): str(p.readlink()) for p in work.rglob("*") if p.is_symlink()}
    assert links == {"link": "left", "deep/tree": "er", "lost": "none"}
    assert (work / "turned").is_dir()
