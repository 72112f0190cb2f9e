"""What is already done: resume, refuse, publish, leave nothing."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from geoseg.errors import OutputError, ResumeError
from geoseg.manifest import Run, identity, write_json
from geoseg.window import Window

FACTS = {"scene": {"sha256": "ab"}, "options": {"tile": 64}}
HOLDER = f"""
import pathlib, sys, time
from geoseg.manifest import Run

with Run(pathlib.Path(sys.argv[1]), "s", {FACTS!r}):
    print("held", flush=True)
    time.sleep(60)
"""


def finish(run: Run) -> None:
    with run:
        (run.work / "s_classes.tif").write_bytes(b"abc")
        run.publish(["s_classes.tif"], {"warnings": []})


def test_identity_does_not_depend_on_the_order_of_keys() -> None:
    assert identity({"a": 1, "b": [2, 3]}) == identity({"b": [2, 3], "a": 1})
    assert identity({"a": 1}) != identity({"a": 2})


def test_a_finished_run_is_known_again(tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    assert Run(out, "s", FACTS).finished() is None
    finish(Run(out, "s", FACTS))
    before = Run(out, "s", FACTS).finished()
    assert before is not None
    assert before["outputs"] == {"s_classes.tif": 3}
    assert sorted(path.name for path in out.iterdir()) == ["s.manifest.json", "s_classes.tif"]


def test_results_of_another_run_are_not_replaced(tmp_path: Path) -> None:
    finish(Run(tmp_path, "s", FACTS))
    other = {**FACTS, "options": {"tile": 128}}
    with pytest.raises(OutputError, match=r"another run are there \(other options\); use --force"):
        Run(tmp_path, "s", other).finished()
    assert Run(tmp_path, "s", other, force=True).finished() is None


def test_a_result_that_was_changed_is_noticed(tmp_path: Path) -> None:
    finish(Run(tmp_path, "s", FACTS))
    (tmp_path / "s_classes.tif").write_bytes(b"longer than before")
    with pytest.raises(OutputError, match="missing or changed"):
        Run(tmp_path, "s", FACTS).finished()


def test_files_of_unknown_origin_are_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "s_classes.tif").write_bytes(b"mine")
    with pytest.raises(OutputError, match="exists already"), Run(tmp_path, "s", FACTS) as run:
        run.check_clear(["s_classes.tif"])
    assert [path.name for path in tmp_path.iterdir()] == ["s_classes.tif"], "no work folder is left"


def test_a_run_that_fails_before_its_first_block_leaves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(OutputError), Run(out, "s", FACTS):
        raise OutputError("disk full")
    assert not out.exists()


def test_a_disk_that_is_full_from_the_start_leaves_nothing_and_holds_nothing(tmp_path: Path) -> None:
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        with pytest.raises(OutputError), Run(tmp_path / "out", "scene", {"a": 1}):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert not (tmp_path / "out").exists()
    with Run(tmp_path / "out", "scene", {"a": 1}) as run:
        assert run.work.is_dir()


def test_finished_blocks_outlive_a_failure_and_are_taken_up(tmp_path: Path) -> None:
    core = Window(0, 512, 512, 100)
    with pytest.raises(OutputError), Run(tmp_path, "s", FACTS) as run:
        run.block(core).write_bytes(b"done")
        run.block(core).with_suffix(".part.tif").write_bytes(b"half")
        raise OutputError("disk full")
    with Run(tmp_path, "s", FACTS) as run:
        assert run.block(core).read_bytes() == b"done"
        assert not list(run.work.glob("*.part*"))


def test_unfinished_work_of_another_run_is_not_thrown_away(tmp_path: Path) -> None:
    with pytest.raises(OutputError), Run(tmp_path, "s", FACTS) as run:
        run.block(Window(0, 0, 1, 1)).write_bytes(b"done")
        raise OutputError("stop")
    other = {**FACTS, "scene": {"sha256": "cd"}}
    with pytest.raises(ResumeError, match=r"other scene\); use --force"), Run(tmp_path, "s", other):
        pass
    with Run(tmp_path, "s", other, force=True) as run:
        assert not run.block(Window(0, 0, 1, 1)).exists()


def test_two_processes_do_not_share_a_folder(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline().strip() == "held"
        with pytest.raises(ResumeError, match="another geoseg process"), Run(tmp_path, "s", FACTS):
            pass
    finally:
        holder.kill()
        holder.wait()
        assert holder.stdout is not None
        holder.stdout.close()
    with Run(tmp_path, "s", FACTS):
        pass


def test_a_manifest_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s.manifest.json").write_text("[1, 2]")
    with pytest.raises(OutputError, match="not a manifest of geoseg"):
        Run(tmp_path, "s", FACTS).finished()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="cannot be written"), Run(tmp_path / "out", "s", FACTS):
        pass
    tmp_path.chmod(0o700)


def test_a_file_in_the_place_of_the_folder_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(OutputError, match="cannot be written"), Run(tmp_path / "out", "s", FACTS):
        pass


def test_json_is_whole_or_absent(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    write_json(target, {"x": "ü"})
    with pytest.raises(TypeError):
        write_json(target, {"x": object()})
    assert json.loads(target.read_text(encoding="utf-8")) == {"x": "ü"}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
