"""Expiry times in signed URLs of the services that people use, and in nonsense."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightd.core.signed import good_until, renew_at

NEW_YEAR = 1767225600
"""2026-01-01T00:00:00Z"""
POLICY = (
    b'{"Statement":[{"Resource":"https://cdn-lfs.hf.co/repos/*","Condition":{"DateLessThan":'
    b'{"AWS:EpochTime":1767229200}}}]}'
)


def cloudfront(policy: bytes) -> str:
    return base64.b64encode(policy).decode().translate(str.maketrans("+=/", "-_~"))


GOOD = {
    "s3": (
        "https://b.s3.eu-central-1.amazonaws.com/m/model.safetensors?X-Amz-Algorithm=AWS4-HMAC-SHA256"
        "&X-Amz-Credential=AKIA%2F20260101%2Feu-central-1%2Fs3%2Faws4_request&X-Amz-Date=20260101T000000Z"
        "&X-Amz-Expires=3600&X-Amz-SignedHeaders=host&X-Amz-Signature=ab%2Fcd",
        NEW_YEAR + 3600,
    ),
    "xet bridge": (
        "https://cas-bridge.xethub.hf.co/xet-bridge-us/66/ab?X-Amz-Date=20260101T000000Z&X-Amz-Expires=3600"
        "&X-Xet-Cas-Uid=public&response-content-disposition=inline%3B+filename%3D%22m%22&x-id=GetObject&Expires="
        f"{NEW_YEAR + 3000}&Policy={cloudfront(POLICY)}&Signature=x~y__&Key-Pair-Id=K2L8F4GPSG1IFC",
        NEW_YEAR + 3000,
    ),
    "lower case": ("https://h/f?x-amz-date=20260101T000000Z&x-amz-expires=60", NEW_YEAR + 60),
    "google v4": (
        "https://storage.googleapis.com/b/o?X-Goog-Algorithm=GOOG4-RSA-SHA256&X-Goog-Date=20260101T000000Z"
        "&X-Goog-Expires=900&X-Goog-Signature=00",
        NEW_YEAR + 900,
    ),
    "s3 v2": (f"https://b.s3.amazonaws.com/o?AWSAccessKeyId=A&Expires={NEW_YEAR}&Signature=v%2Bx%3D", NEW_YEAR),
    "cloudfront": (f"https://d1.cloudfront.net/o?Expires={NEW_YEAR}&Signature=a-b__&Key-Pair-Id=K", NEW_YEAR),
    "cloudfront policy": (f"https://d1.cloudfront.net/o?Policy={cloudfront(POLICY)}&Signature=a", NEW_YEAR + 3600),
    "azure": ("https://a.blob.core.windows.net/c/b?sv=2024-11-04&se=2026-01-01T00%3A00%3A00Z&sig=x%3D", NEW_YEAR),
    "azure, a day": ("https://a.blob.core.windows.net/c/b?se=2026-01-01&sig=x", NEW_YEAR),
    "azure, minutes": ("https://a.blob.core.windows.net/c/b?se=2026-01-01T00:00Z&sig=x", NEW_YEAR),
    "a good one beside nonsense": (f"https://h/f?X-Amz-Date=now&X-Amz-Expires=60&Expires={NEW_YEAR}", NEW_YEAR),
}


@pytest.mark.parametrize(("url", "end"), GOOD.values(), ids=GOOD)
def test_known_forms(url: str, end: float) -> None:
    assert good_until(url) == end


@pytest.mark.parametrize(
    "query",
    [
        "",
        "Expires=",
        "Expires=1",
        "Expires=3600",
        "Expires=-1767225600",
        "Expires=99999999999",
        "Expires=1767225600000",
        "Expires=１７６７２２５６００",
        "Expires=Thu,+01+Jan+2026+00:00:00+GMT",
        "X-Amz-Expires=3600",
        "X-Amz-Date=20260101T000000Z",
        "X-Amz-Date=20261301T000000Z&X-Amz-Expires=3600",
        "X-Amz-Date=20260101T000000&X-Amz-Expires=3600",
        "X-Amz-Date=20260101T000000Z&X-Amz-Expires=soon",
        "X-Amz-Date=20260101T000000Z&X-Amz-Expires=99999999999",
        "X-Amz-Date=20260101T000000Z&X-Goog-Expires=60",
        "se=2026-01-01",
        "se=tomorrow&sig=x",
        "se=&sig=x",
        "Policy=!",
        "Policy=e30_",
        "Policy=%C3%A4",
        "Policy=" + "A" * 100_000,
    ],
)
def test_nonsense(query: str) -> None:
    assert good_until(f"https://h/f?{query}") is None


def test_no_url_at_all() -> None:
    assert good_until("http://[::1/x?Expires=1767225600") is None


@given(st.text())
def test_it_never_raises(text: str) -> None:
    good_until(text)
    good_until(f"https://h/f?X-Amz-Date={text}&X-Amz-Expires={text}&Expires={text}&se={text}&sig={text}&Policy={text}")


@pytest.mark.parametrize(("life", "margin"), [(3600, 60), (600, 60), (100, 10), (1, 0.1)])
def test_it_is_renewed_before_its_end(life: float, margin: float) -> None:
    assert renew_at(1000 + life, 1000) == pytest.approx(1000 + life - margin)
