"""The HTTP session under the SDKs of Azure and Google: one request, one attempt, a whole body.

Both SDKs sit on `requests`, and both would fetch a body that broke again by themselves, behind
the back of the layers that count and pace attempts. So a session hands them an answer only when
its body is here, whole and in time; everything that goes wrong below HTTP leaves as one of our
errors, which the SDKs pass on as it is. It must not know which service answers: what proves that
an answer is the service's, and not some proxy's, is a function given to it.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import requests
from requests.adapters import HTTPAdapter
from urllib3 import HTTPResponse
from urllib3.exceptions import HTTPError

from s3fs_banyan.errors import Misconfigured, Unavailable
from s3fs_banyan.remote.http_body import each_look, in_pieces
from s3fs_banyan.runtime import monotonic_s

_READ_RATE_MIN: Final = 16 * 1024
"""Bytes a second: a body that comes slower is given up, or a trickle would never end."""

_RANGE: Final = re.compile(r"bytes=(\d+)-(\d*)")
_CONTENT_RANGE: Final = re.compile(r"bytes (\d+)-(\d+)/(\d+)")

CheckAnswer = Callable[[requests.PreparedRequest, requests.Response], None]


class WholeBodySession(requests.Session):
    """A session whose answers have their body in memory, complete; safe for several threads."""

    read_timeout_s: float = 30.0
    check_answer: CheckAnswer | None = None
    """Called with the request and its answer, head only; raises one of our errors, or nothing."""

    def prepare(
        self, *, connections: int, read_timeout_s: float, verify: bool | str, check: CheckAnswer
    ) -> None:
        """Set the size of the pool, the time-out and the check; before the first request."""
        self.read_timeout_s = read_timeout_s
        self.check_answer = check
        self.verify = verify
        for scheme in ("http://", "https://"):
            adapter = HTTPAdapter(
                pool_connections=2, pool_maxsize=connections, max_retries=0, pool_block=False
            )
            self.mount(scheme, adapter)

    def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:  # noqa: ANN401  # as the base class has them
        """Send one request; raises `Unavailable` or `Misconfigured` for what is no answer."""
        kwargs["stream"] = True
        request.body = in_pieces(request.body)
        what = f"{request.method} {_without_query(request.url or '')}"
        try:
            response = super().send(request, **kwargs)
        except (requests.RequestException, HTTPError, OSError) as error:
            # Not chained: these errors quote the whole URL, and with it a signature.
            raise _from_transport(error, what) from None
        with response:
            if self.check_answer is not None:
                self.check_answer(request, response)
            body = self._body(response, request, what)
        _check_range(request, response, len(body), what)
        # What reads the answer next finds a body of its own, with nothing left to go wrong.
        response.raw = HTTPResponse(
            body=io.BytesIO(body),
            headers=response.raw.headers,
            status=response.status_code,
            request_method=request.method,
            preload_content=False,
            enforce_content_length=False,
        )
        return response

    def _body(
        self, response: requests.Response, request: requests.PreparedRequest, what: str
    ) -> bytes:
        length = response.headers.get("content-length", "")
        chunked = "chunked" in response.headers.get("transfer-encoding", "")
        bodiless = request.method == "HEAD" or response.status_code in {204, 304}
        if not (length.isdecimal() or chunked or bodiless):
            # Nothing would tell its end from a lost connection.
            raise Unavailable(f"{what}: a body without a length")
        deadline_s = monotonic_s() + self.read_timeout_s
        deadline_s += int(length) / _READ_RATE_MIN if length.isdecimal() else 0.0
        pieces = []
        try:
            for piece in each_look(partial(response.raw.read1, decode_content=False)):
                pieces.append(piece)
                if monotonic_s() > deadline_s:
                    raise Unavailable(f"{what}: the body came too slowly")
        except (HTTPError, OSError) as error:
            raise _from_transport(error, what) from None
        return b"".join(pieces)


def _check_range(
    request: requests.PreparedRequest, response: requests.Response, length: int, what: str
) -> None:
    """Raise `Unavailable` if bytes of another range came than were asked for."""
    asked = request.headers.get("x-ms-range") or request.headers.get("range")
    if not asked or response.status_code not in {200, 206}:
        return
    wanted = _RANGE.fullmatch(_text(asked))
    came = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
    if wanted is None or came is None or response.status_code == 200:
        raise Unavailable(f"{what}: {_text(asked)} was asked for, and no range came")
    size = int(came[3])
    end = min(size, int(wanted[2]) + 1) if wanted[2] else size
    if (int(came[1]), int(came[2]) + 1, length) != (int(wanted[1]), end, end - int(wanted[1])):
        raise Unavailable(f"{what}: {_text(asked)} was asked for, {came[0]} came")


def _from_transport(error: Exception, what: str) -> Misconfigured | Unavailable:
    """Return our error for a request that got no answer, or not all of it."""
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return Misconfigured(
            f"{what}: the server's certificate is not trusted: set ca_bundle to the certificate "
            "of its authority"
        )
    if isinstance(error, requests.exceptions.InvalidURL | requests.exceptions.InvalidSchema):
        return Misconfigured(f"{what}: the address cannot be used: {type(error).__name__}")
    reason = error
    while reason.__cause__ is not None and isinstance(reason.__cause__, Exception):
        reason = reason.__cause__
    return Unavailable(f"{what}: {type(error).__name__} ({type(reason).__name__})")


def _without_query(url: str) -> str:
    return url.partition("?")[0]


def _text(value: str | bytes) -> str:
    return value.decode("ascii", "replace") if isinstance(value, bytes) else value
