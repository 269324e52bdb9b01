"""The guards in conftest.py fail the tests that they are meant to fail."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hygiene import tree

pytest_plugins = ["pytester"]

_LOGS = """
import logging
import pytest

def test_information_passes():
    logging.getLogger("s3fs_banyan.x").info("fine")

def test_another_package_may_warn():
    logging.getLogger("elsewhere").warning("not ours")

@pytest.mark.allow_log_warnings
def test_expected_warning_passes():
    logging.getLogger("s3fs_banyan.x").warning("expected")

def test_unexpected_warning_fails():
    logging.getLogger("s3fs_banyan.x").warning("unexpected")
"""

_RESOURCES = """
def test_leaves_a_file_open_in_a_cycle(tmp_path):
    class Holder:
        pass
    holder = Holder()
    holder.itself = holder
    holder.file = (tmp_path / "x").open("w")
"""


@pytest.fixture
def guarded(pytester: pytest.Pytester) -> pytest.Pytester:
    """A project of its own with this project's conftest.py."""
    pytester.makeconftest(tree.text(Path("tests/conftest.py")))
    pytester.makepyprojecttoml(
        '[tool.pytest.ini_options]\nmarkers = ["allow_log_warnings"]\nfilterwarnings = ["error"]\n'
    )
    return pytester


@pytest.mark.allow_log_warnings
def test_an_unexpected_log_warning_fails_its_test(guarded: pytest.Pytester) -> None:
    """Without the guard a swallowed failure would show in a log that nobody reads."""
    guarded.makepyfile(_LOGS)
    result = guarded.runpytest_inprocess()
    result.assert_outcomes(passed=4, errors=1)
    result.stdout.fnmatch_lines(["*WARNING s3fs_banyan.x: unexpected*"])


def test_a_file_left_open_fails_its_test(guarded: pytest.Pytester) -> None:
    """Without the collection it would be blamed on a later test, or on none."""
    guarded.makepyfile(_RESOURCES)
    result = guarded.runpytest_inprocess()
    assert result.parseoutcomes().get("errors", 0) + result.parseoutcomes().get("failed", 0) == 1
