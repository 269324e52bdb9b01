"""Who goes first at the processors, in processes of their own: this one stays where it is."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.turns import ARE_HEARD, turn_ns

_SHOW = """
import os, sys
from s3fs_banyan import scheduling
from tests.turns import turn_ns
def show():
    print(os.getpriority(os.PRIO_PROCESS, 0), turn_ns(0))
{}
"""


def _shown(code: str) -> list[tuple[int, int]]:
    run = subprocess.run(
        [sys.executable, "-c", _SHOW.format(code)], capture_output=True, text=True, check=True
    )
    return [(int(nice), int(turn)) for nice, turn in map(str.split, run.stdout.splitlines())]


def test_who_goes_first_has_short_turns_and_who_steps_back_the_usual_ones() -> None:
    """A child inherits its parent's turns: stepping back is more than a niceness."""
    usual_ns = turn_ns(0)
    first, second, back = _shown(
        "scheduling.go_first(-3); show(); scheduling.go_first(4); show()\n"
        "scheduling.step_back(7); show()"
    )
    short_ns = 100_000 if ARE_HEARD else usual_ns
    assert first == (-3, short_ns)
    assert second == (4, short_ns)
    assert back == (7, usual_ns)


def test_who_stepped_back_can_step_forward_again() -> None:
    """Others stand still until it is done; its session counts as much as its own niceness."""
    back, forward, again = _shown(
        "os.setsid()\n"
        "def show():\n"
        "    now = open('/proc/self/autogroup').read().split()[-1:]\n"
        "    nice = os.getpriority(os.PRIO_PROCESS, 0)\n"
        "    print(nice, int(now[0]) if now else nice)\n"
        "scheduling.step_back(7); show(); scheduling.step_forward(); show()\n"
        "scheduling.step_back(7); show()"
    )
    assert (back, forward, again) == ((7, 7), (0, 0), (7, 7))


def test_another_policy_stays() -> None:
    """Somebody who runs the daemon as a batch or real-time task has decided otherwise."""
    (shown,) = _shown(
        "os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))\n"
        "scheduling.go_first(2)\n"
        "assert os.sched_getscheduler(0) == os.SCHED_BATCH\n"
        "show()"
    )
    assert shown[0] == 2


def test_a_machine_whose_calls_are_not_known_keeps_its_turns() -> None:
    """Niceness needs no number of a system call."""
    before = os.getpriority(os.PRIO_PROCESS, 0)
    (shown,) = _shown(
        "import platform; machine = platform.machine\n"
        "platform.machine = lambda: 'unheard-of'\n"
        "scheduling.go_first(3); scheduling.step_back(5)\n"
        "platform.machine = machine; show()"
    )
    assert shown == (5, turn_ns(0))
    assert os.getpriority(os.PRIO_PROCESS, 0) == before
