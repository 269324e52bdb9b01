"""The shell functions under scripts/lib do what the gate relies on."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.hygiene import tree


def _bash(program: str, directory: Path = tree.ROOT) -> subprocess.CompletedProcess[str]:
    """Run a program with the functions of scripts/lib, in a directory."""
    sourced = "".join(f". {tree.ROOT}/scripts/lib/{name}.sh\n" for name in ("prepare", "steps"))
    return subprocess.run(
        ["bash", "-uo", "pipefail", "-c", sourced + program],
        cwd=directory,
        check=False,
        capture_output=True,
        text=True,
    )


def test_the_first_failure_is_the_exit_code_and_every_step_runs() -> None:
    """A gate that ends with the last step's code is green although something failed."""
    done = _bash(
        "step one true\nstep two bash -c 'exit 3'\nstep three bash -c 'exit 4'\n"
        "step four echo four ran\nfinish_steps\n"
    )
    assert done.returncode == 3
    assert "four ran" in done.stdout
    assert "FAILED (3)" in done.stdout
    assert "FAILED (4)" in done.stdout


def test_a_required_step_that_fails_ends_the_run() -> None:
    """Tests without their packages would only fail for another reason."""
    done = _bash("required_step one bash -c 'exit 5'\nstep two echo two ran\nfinish_steps\n")
    assert done.returncode == 5
    assert "two ran" not in done.stdout


def test_steps_that_succeed_end_with_success() -> None:
    """The gate can be passed."""
    done = _bash("required_step one true\nstep two true\nfinish_steps\n")
    assert done.returncode == 0


def test_a_step_beside_the_others_is_shown_whole_and_counts() -> None:
    """Two outputs that are mixed cannot be read; a failure that is not counted is not seen."""
    done = _bash(
        "beside early bash -c 'echo first; sleep 0.2; echo second; exit 3'\n"
        "step one echo between\njoin_beside\nfinish_steps\n"
    )
    assert done.returncode == 3
    assert done.stdout.index("between") < done.stdout.index("first\nsecond\n")
    assert "FAILED (3)" in done.stdout
    done = _bash("beside early true\nstep one bash -c 'exit 4'\njoin_beside\nfinish_steps\n")
    assert done.returncode == 4
    assert done.stdout.count("FAILED") == 2  # the headline of the one that did, and the report


def test_a_step_beside_the_others_ends_with_the_script() -> None:
    """An interrupted gate must not leave a type checker behind that slows the next one down."""
    child = "(sleep 20; echo survived >&9) & wait"
    done = _bash(f"exec 9>&1\nbeside early bash -c '{child}'\nexit 9\n")
    assert done.returncode == 9
    assert done.stdout == ""


@pytest.mark.parametrize("missing", ["fusermount3", "gcc", "pkg-config", "git"])
def test_a_missing_program_is_named_by_its_package(tmp_path: Path, missing: str) -> None:
    """A fresh machine gets everything in one go, not one thing a run."""
    for name in {"fusermount3", "gcc", "pkg-config", "git"} - {missing}:
        program = tmp_path / name
        program.write_text("#!/bin/sh\nexit 0\n")
        program.chmod(0o755)
    done = _bash(f"PATH={tmp_path}\nmissing_system_packages ''\n", tmp_path)
    package = {"fusermount3": "fuse3"}.get(missing, missing)
    assert package in done.stdout.split()


def test_an_unprivileged_user_is_told_what_to_install(tmp_path: Path) -> None:
    """Otherwise the build of a package fails a minute later, in words that help nobody."""
    done = _bash(
        "id() { echo 1000; }\nmissing_system_packages() { echo gcc; echo fuse3; }\n"
        "ensure_system_packages\n",
        tmp_path,
    )
    assert done.returncode == 1
    assert "apt-get install gcc fuse3" in done.stderr


def test_the_environment_is_made_anew_only_when_a_lock_changed(tmp_path: Path) -> None:
    """A run that always installs is slow; one that never does runs yesterday's packages."""
    (tmp_path / "scripts" / "locks").mkdir(parents=True)
    lock = tmp_path / "scripts" / "locks" / "dev.lock"
    lock.write_text("one")
    (tmp_path / "pyproject.toml").write_text("")
    fakes = "_build_venv() { echo built; mkdir -p .venv; }\n_pip() { echo installed; }\n"
    outputs = []
    for content in ("one", "one", "two"):
        lock.write_text(content)
        done = _bash(fakes + "ensure_venv dev && ensure_venv runtime\n", tmp_path)
        assert done.returncode == 0, done.stderr
        outputs.append(done.stdout.split())
    assert outputs == [["built", "installed"], [], ["built"]]


def test_a_build_that_fails_is_not_taken_for_done(tmp_path: Path) -> None:
    """Half an environment must not pass for a whole one in the next run."""
    (tmp_path / "scripts" / "locks").mkdir(parents=True)
    (tmp_path / "scripts" / "locks" / "dev.lock").write_text("one")
    program = "_build_venv() { mkdir -p .venv; return 6; }\nensure_venv dev\n"
    for _ in range(2):
        assert _bash(program, tmp_path).returncode == 6


def test_promtool_is_fetched_once(tmp_path: Path) -> None:
    """The tests of the alert rules need it; a download in every run would be slow."""
    package = tmp_path / "package" / "usr" / "bin"
    package.mkdir(parents=True)
    (package / "promtool").write_text("#!/bin/sh\necho it works\n")
    (package / "promtool").chmod(0o755)
    fakes = (
        f"apt-get() {{ echo downloaded >>{tmp_path}/log; touch prometheus_1_amd64.deb; }}\n"
        f"dpkg-deb() {{ tar -c -C {tmp_path}/package ./usr; }}\n"
        "command() { return 1; }\n"
    )
    done = _bash(f"{fakes}ensure_promtool && ensure_promtool\n", tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "log").read_text() == "downloaded\n"
    found = subprocess.run(
        [tmp_path / ".promtool_cache" / "promtool"], capture_output=True, text=True, check=True
    )
    assert found.stdout == "it works\n"


def test_a_promtool_that_cannot_be_fetched_is_named(tmp_path: Path) -> None:
    """Otherwise the tests fail later, in words that help nobody."""
    fakes = "apt-get() { echo no network >&2; return 1; }\ncommand() { return 1; }\n"
    done = _bash(f"{fakes}ensure_promtool\n", tmp_path)
    assert done.returncode == 1
    assert "no network" in done.stderr
    assert "promtool is missing" in done.stderr
    assert not (tmp_path / ".promtool_cache").exists()
