"""The script of faults: the same for the same seed, and with every kind in it."""

from __future__ import annotations

from itertools import pairwise

import pytest

from tests.chaos.script import KINDS, WEATHERS, Blackout, Request, Script, spread_blackouts

_PUT = Request(method="PUT", target="/bucket/vol/pack/1/abc", body_bytes=100)
_GET = Request(method="GET", target="/bucket/vol/pack/1/abc", body_bytes=0)
_LIST = Request(method="GET", target="/bucket?list-type=2&prefix=vol%2Flog%2F", body_bytes=0)
_COMPLETE = Request(method="POST", target="/bucket/vol/pack/1/abc?uploadId=x", body_bytes=9)


def _run(script: Script) -> list[str]:
    found = []
    for number in range(2000):
        request = (_PUT, _GET, _LIST, _COMPLETE)[number % 4]
        fault = script.draw(request, number / 10)
        if fault.kind:
            script.note(fault.kind, request)
        found.append(fault.kind)
    return found


def test_a_seed_gives_the_same_faults_and_another_gives_others() -> None:
    """A failure is looked into by running its seed again."""
    runs = [_run(Script(seed=seed, duration_s=200.0)) for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]


def test_every_kind_and_weather_comes_in_a_short_run() -> None:
    """A kind that never came has proved nothing."""
    script = Script(seed=3, duration_s=200.0)
    assert set(_run(script)) == {*KINDS, ""}
    assert {script.weather(at).name for at in range(200)} == {w.name for w in WEATHERS}
    assert script.missing() == ["delayed"]


def test_faults_fit_the_requests_that_they_hit() -> None:
    """A flipped bit in a list is beyond what any client can notice, so none is made."""
    script = Script(seed=4, duration_s=1e4)
    kinds: dict[str, set[str]] = {"put": set(), "get": set(), "list": set()}
    for number in range(3000):
        for name, request in (("put", _PUT), ("get", _GET), ("list", _LIST)):
            kinds[name].add(script.draw(request, number * 3.0).kind)
    assert not kinds["list"] & {"answer_flipped", "wrong_etag", "lost_answer", "late"}
    assert "answer_flipped" in kinds["get"]
    assert not kinds["get"] & {"lost_answer", "late", "request_reset"}
    assert {"lost_answer", "late", "request_flipped"} <= kinds["put"]


def test_each_sort_of_request_gets_each_kind_that_fits_it() -> None:
    """Reads are a hundred times as many: they must not use the rare kinds up."""
    script = Script(seed=8, duration_s=1e4, fixed="rough")
    for number in range(3000):
        request = _PUT if number % 60 == 0 else _GET
        if kind := script.draw(request, number * 3.0).kind:
            script.note(kind, request)
    of_puts = [n for line, n in script.by_target.items() if line.endswith("PUT pack")]
    assert len(of_puts) == sum(fits(_PUT) for fits in KINDS.values())
    assert max(of_puts) - min(of_puts) <= 5


def test_after_the_end_nothing_goes_wrong() -> None:
    """The drain at the end of a campaign needs a clear line."""
    script = Script(seed=5, duration_s=10.0)
    assert {script.draw(_PUT, 10.0 + number).kind for number in range(500)} == {""}


def test_the_category_of_a_key_is_its_part_of_the_volume() -> None:
    """Bytes are counted by it."""
    assert [request.category for request in (_PUT, _LIST, _COMPLETE)] == ["pack", "bucket", "pack"]


def test_blackouts_alternate_and_do_not_overlap() -> None:
    """Refused and black-holed connections take different paths through the client."""
    found = spread_blackouts(6, 1000.0, (100.0, 50.0, 100.0))
    assert [blackout.kind for blackout in found] == ["refused", "black-holed", "refused"]
    assert all(a.start_s + a.length_s < b.start_s for a, b in pairwise(found))
    assert found[-1].start_s + found[-1].length_s < 1000.0
    gone = Blackout(start_s=2, length_s=3, kind="refused")
    script = Script(seed=1, duration_s=9.0, blackouts=(gone,))
    modes = [script.mode(at) for at in (1.9, 2.0, 4.9, 5.0)]
    assert modes == ["open", "refused", "refused", "open"]
    with pytest.raises(ValueError, match="do not fit"):
        spread_blackouts(1, 100.0, (60.0, 60.0))
