"""The command line: its list of stages, exit statuses, and messages in place of tracebacks."""

from __future__ import annotations

import errno
import importlib
import os
import signal
import subprocess
import sys

import pytest

from megavoxel import __version__, cli
from megavoxel.errors import UserError
from megavoxel.files import atomic_directory, atomic_path, content_hash, read_json, write_json, write_text
from megavoxel.stages import split


@pytest.mark.parametrize("stage", cli.STAGES)
def test_every_stage_explains_itself(stage, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main([stage, "--help"])
    assert ended.value.code == 0
    module = importlib.import_module(f"megavoxel.stages.{stage.replace('-', '_')}")
    shown = " ".join(capsys.readouterr().out.split())
    assert " ".join(module.__doc__.split())[:60] in shown


def test_the_stages_of_the_contract_are_there():
    promised = "fetch check fingerprint plan preprocess train predict ensemble postprocess evaluate report phantom"
    assert set(promised.split()) <= set(cli.STAGES)


def test_help_of_predict_begins_with_the_everyday_options(capsys):
    with pytest.raises(SystemExit):
        cli.main(["predict", "--help"])
    shown = capsys.readouterr().out
    groups = ["every day:", "scans that do not say all", "networks of a study in", "cases of a study,"]
    assert [shown.index(group) for group in groups] == sorted(shown.index(group) for group in groups)
    everyday = shown[shown.index(groups[0]) : shown.index(groups[1])]
    assert all(option in everyday for option in ("--model", "--input", "--output", "--pictures"))
    assert "--splits" not in everyday


def test_help_and_version_need_no_stage(capsys):
    for option, word in (("--help", "postprocess"), ("--version", __version__)):
        with pytest.raises(SystemExit) as ended:
            cli.main([option])
        assert ended.value.code == 0
        assert word in capsys.readouterr().out


def test_the_program_alone_prints_its_help_with_the_everyday_stages_first(capsys):
    assert cli.main([]) == 0
    shown = capsys.readouterr().out
    assert (
        shown.index("\n  init ") < shown.index("\n  predict ") < shown.index("\n  train ") < shown.index("\n  image ")
    )


@pytest.mark.parametrize("arguments", [["trian"], ["split"], ["split", "--fold", "3"]])
def test_wrong_usage_ends_with_status_two(arguments):
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2


def test_an_error_of_the_user_is_one_line_and_status_one(tmp_path, capsys):
    arguments = ["split", "--cases", str(tmp_path / "none.json"), "--folds", "2", "--seed", "1", "--output", "x"]
    assert cli.main(arguments) == 1
    message = capsys.readouterr().err
    assert message.startswith("megavoxel split: error: ")
    assert "none.json" in message
    assert message.count("\n") == 1


def split_that_fails(monkeypatch, *error: object) -> int:
    """The status of `megavoxel split` where the system refuses something to it."""

    def run(arguments):
        raise OSError(*error)

    monkeypatch.setattr(split, "run", run)
    return cli.main(["split", "--cases", "a", "--folds", "2", "--seed", "1", "--output", "x"])


def test_an_interrupt_is_one_line_and_status_130(monkeypatch, capsys):
    monkeypatch.setattr(split, "run", lambda _: os.kill(os.getpid(), signal.SIGINT))
    monkeypatch.setattr(split, "add_arguments", lambda _: None)
    assert cli.main(["split"]) == 130
    assert capsys.readouterr().err.startswith("megavoxel split: interrupted; nothing half-written was left behind")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_interrupt_does_not_wait_for_the_first_to_clean_up():
    script = """
import os, signal, time
from megavoxel import cli
from megavoxel.stages import split
def run(_):
    try:
        os.kill(os.getpid(), signal.SIGINT)
    finally:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)
split.run, split.add_arguments = run, lambda _: None
cli.main(["split"])
"""
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")


def test_a_full_disk_is_said(monkeypatch, capsys):
    assert split_that_fails(monkeypatch, errno.ENOSPC, "reason", "results/x.json") == 1
    assert "no space left on the disk while writing results/x.json" in capsys.readouterr().err


def test_a_path_that_the_system_refuses_is_named_and_other_faults_of_it_are_not_hidden(monkeypatch, capsys):
    assert split_that_fails(monkeypatch, errno.EACCES, "Permission denied", "results/x.json") == 1
    message = capsys.readouterr().err
    assert message.startswith("megavoxel split: error: results/x.json: the system says 'Permission denied'; name a ")
    assert message.count("\n") == 1
    with pytest.raises(OSError, match="reason"):
        split_that_fails(monkeypatch, errno.EPIPE, "reason")


@pytest.mark.parametrize("place", ["file/made", "/proc/none/made"])
def test_an_output_where_no_folder_can_be_made_is_one_line(tmp_path, capsys, place):
    (tmp_path / "file").write_text("")
    arguments = ["phantom", "--training-cases", "2", "--shape", "16", "16", "16", "--output", str(tmp_path / place)]
    assert cli.main(arguments) == 1
    message = capsys.readouterr().err
    assert message.startswith(f"megavoxel phantom: error: {(tmp_path / place).parent}: the system says ")
    assert message.count("\n") == 1


def test_the_light_stages_start_without_torch():
    code = "import sys, megavoxel.cli, megavoxel.stages.check, megavoxel.stages.split, megavoxel.stages.plan;"
    done = subprocess.run([sys.executable, "-c", f"{code} sys.exit('torch' in sys.modules)"], check=False)
    assert done.returncode == 0


def test_an_exception_leaves_the_old_file_and_no_partial_one(tmp_path):
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(ZeroDivisionError), atomic_path(tmp_path / "a.txt") as partial:
        partial.write_text(str(1 / 0))
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"


def test_an_exception_leaves_the_old_folder_and_no_partial_one(tmp_path):
    for name in ("first", "second"):
        with atomic_directory(tmp_path / "folder", replace=True) as partial:
            (partial / name).write_text(name)
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["second"]
    with pytest.raises(ZeroDivisionError), atomic_directory(tmp_path / "folder", replace=True) as partial:
        (partial / "third").write_text(str(1 / 0))
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["second"]
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("umask", [0o002, 0o022, 0o077])
def test_a_folder_has_the_permissions_that_the_umask_says(tmp_path, umask):
    before = os.umask(umask)
    try:
        with atomic_directory(tmp_path / "folder"):
            pass
    finally:
        os.umask(before)
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o777 & ~umask


def test_a_folder_with_content_is_not_replaced_unasked(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="has content already"), atomic_directory(tmp_path):
        pass
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_broken_json_is_named_with_what_to_do(tmp_path):
    (tmp_path / "plan.json").write_text('{"patch": [1,')
    with pytest.raises(UserError, match=r"plan\.json: this plan cannot be read as JSON .*run its stage again"):
        read_json(tmp_path / "plan.json", what="plan")
    with pytest.raises(UserError, match="does not exist"):
        read_json(tmp_path / "none.json", what="plan")


def test_a_folder_in_place_of_a_file_is_named_and_not_to_be_deleted(tmp_path):
    with pytest.raises(UserError, match=r"this plan cannot be read \(Is a directory\); name the file") as refused:
        read_json(tmp_path, what="plan")
    assert "delete" not in str(refused.value)


def test_numbers_that_json_does_not_have_are_refused(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"value": float("nan")})
    assert not list(tmp_path.iterdir())


def test_the_hash_depends_on_values_and_not_on_the_order_of_keys():
    assert content_hash({"a": 1, "b": [2]}) == content_hash({"b": [2], "a": 1})
    assert content_hash({"a": 1}) != content_hash({"a": 2})
