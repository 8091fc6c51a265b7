"""hf:// refs."""

from __future__ import annotations

import pytest
from huggingface_hub import HfFileSystem
from hypothesis import given
from hypothesis import strategies as st

from weightd.core.errors import RefSyntax
from weightd.core.hub_ref import HubRef, parse_hub
from weightd.core.refs import parse_ref, redact

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_" + "AbCdEfGhIjKlMnOpQrStUvWxYz012345"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("hf://org/name", HubRef("org/name")),
        ("HF://org/name/", HubRef("org/name")),
        ("hf://models/org/name", HubRef("org/name")),
        ("hf://gpt2", HubRef("gpt2")),
        ("hf://gpt2/", HubRef("gpt2")),
        ("hf://gpt2@main/config.json", HubRef("gpt2", "main", "config.json")),
        ("hf://org/name@v1.0", HubRef("org/name", "v1.0")),
        (f"hf://org/name@{COMMIT}/a/b.json", HubRef("org/name", COMMIT, "a/b.json")),
        ("hf://org/name/a%20b/c%23.json", HubRef("org/name", "main", "a b/c#.json")),
        ("hf://org/name@refs%2Fpr%2F1/x", HubRef("org/name", "refs/pr/1", "x")),
        ("hf://org/name@refs/pr/12", HubRef("org/name", "refs/pr/12")),
        ("hf://org/name@refs/pr/1/x/y", HubRef("org/name", "refs/pr/1", "x/y")),
        ("hf://org/name@refs/convert/parquet/x", HubRef("org/name", "refs/convert/parquet", "x")),
        ("hf://gpt2@refs/pr/1/x", HubRef("gpt2", "refs/pr/1", "x")),
        ("hf://org/name@a%2Fb", HubRef("org/name", "a/b")),
        ("hf://org/name?include=*.gguf", HubRef("org/name", include=("*.gguf",))),
        (
            "hf://org/name@v1?include=a*&exclude=b%26c&include=d/",
            HubRef("org/name", "v1", include=("a*", "d/"), exclude=("b&c",)),
        ),
        ("hf://org/name?include=c++/*", HubRef("org/name", include=("c++/*",))),
    ],
)
def test_read(text: str, found: HubRef) -> None:
    assert parse_hub(text) == found
    assert parse_ref(text).scheme == "hf"
    assert parse_ref(text).shown == text
    assert parse_hub(found.url) == found


@pytest.mark.parametrize(
    "text",
    [
        *(
            "hf://models",
            "hf://models/",
            "hf://",
            "hf:///",
            "hf:///name",
            "hf://org//x",
            "hf://@main",
            "hf://org/name@",
        ),
        *("hf://org/name@a..b", "hf://org/name@a b", "hf://org/name@%0a", "hf://org/name@a:b", "hf://org/name@/x"),
        *("hf://-org/name", "hf://org/na--me", "hf://org/name.git", "hf://org/..", "hf://o%2Frg/name", "hf://ö/name"),
        *("hf://datasets/org/name", "hf://spaces/org/name", "hf://buckets/org/name", "hf://org/name#main"),
        *("hf://org/name?revision=main", "hf://org/name?include=", "hf://org/name?x", f"hf://{'o' * 50}/{'n' * 50}"),
    ],
)
def test_refused(text: str) -> None:
    with pytest.raises(RefSyntax) as e:
        parse_ref(text)
    assert e.value.remedy
    assert redact(text)


@pytest.mark.parametrize(
    "text",
    [
        *(f"hf://user:{TOKEN}@org/name", f"hf://{TOKEN}@org/name", f"hf://{TOKEN}/name", "hf://u:p4ssw0rd@org/name"),
        *("hf://u:p4ss/word@org/name", "HF://u:p4ss@org/name", "hf://org/name?token=p4ssw0rd", "hf://u@h/x#?t=p4ss"),
    ],
)
def test_no_secret_is_repeated(text: str) -> None:
    with pytest.raises(RefSyntax) as e:
        parse_ref(text)
    for secret in (TOKEN, "p4ss"):
        assert secret not in f"{e.value} {redact(text)}"


names = st.from_regex(r"[A-Za-z0-9_]{1,8}(\.[A-Za-z0-9_]{1,8})?", fullmatch=True)
texts = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Zs", "Zl", "Zp")), min_size=1, max_size=12
)
paths = st.lists(texts.filter(lambda t: "/" not in t), max_size=3).map("/".join)
revisions = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9/_+%@=-]{0,10}[A-Za-z0-9])?", fullmatch=True)


@given(names, names, revisions, paths, st.lists(texts, max_size=2), st.lists(texts, max_size=2))
def test_urls_are_read_again(o: str, n: str, revision: str, path: str, include: list[str], exclude: list[str]) -> None:
    ref = HubRef(f"{o}/{n}", revision, path, tuple(include), tuple(exclude))
    if o in ("models", "datasets", "spaces", "kernels", "buckets") or ref.repo.endswith(".git"):
        return
    assert parse_hub(ref.url) == ref


@pytest.mark.parametrize(
    "text",
    ["org/name@refs/pr/1/a.json", "org/name@refs%2Fpr%2F1/a.json", "org/name@v1/d/a.json", "org/name@refs/convert/x/a"],
)
def test_they_are_those_of_the_clients_file_system(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    files = HfFileSystem(endpoint="http://127.0.0.1:9", skip_instance_cache=True)
    monkeypatch.setattr(files, "_repo_and_revision_exist", lambda *_: (True, None))
    theirs, ours = files.resolve_path(text), parse_hub(f"hf://{text}")
    assert (theirs.repo_id, theirs.revision, theirs.path_in_repo) == ours[:3]
