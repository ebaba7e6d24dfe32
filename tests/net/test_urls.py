"""Addresses: what is no base URL is refused, and nothing but its scheme and host is repeated."""

from __future__ import annotations

import pytest

from transom.errors import MisconfiguredError
from transom.net.urls import check_url, is_loopback, split_url

ODD = [
    "", "https://", "https:///x", "ftp://a", "a:1", "https://u:secret@a", "https://@a", "https://a?secret",
    "https://a#secret", "https://a:99999", "https://a:x", "https://bücher.example",
]  # fmt: skip


@pytest.mark.parametrize("url", ODD)
def test_what_is_no_base_url_is_refused(url: str) -> None:
    for check in (lambda: split_url(url, "the URL of this"), lambda: check_url(url)):
        with pytest.raises(MisconfiguredError) as refused:
            check()
        assert "secret" not in str(refused.value)


def test_plain_http_stays_on_this_machine_and_has_no_key() -> None:
    assert check_url("http://127.0.0.1:8000/v1/") == "http://127.0.0.1:8000"
    assert check_url("https://host/base/v1") == "https://host/base"
    with pytest.raises(MisconfiguredError, match="read prompts"):
        check_url("http://host")
    with pytest.raises(MisconfiguredError, match="no TLS key"):
        check_url("http://127.0.0.1", pinned=True)


@pytest.mark.parametrize(
    ("host", "is_here"),
    [
        ("localhost", True),
        ("127.1.2.3", True),
        ("::1", True),
        ("localhost.example", False),
        ("10.0.0.1", False),
    ],
)
def test_loopback(host: str, is_here: bool) -> None:
    assert is_loopback(host) is is_here
