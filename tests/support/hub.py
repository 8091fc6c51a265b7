"""A Hugging Face Hub on 127.0.0.1 whose answers the unmodified huggingface_hub client takes, and its CDN beside it.

    with Hub() as hub:
        repo = hub.repo("org/name")
        repo.commit({"config.json": b"{}", "model.safetensors": DATA})
        hub.token("hf_alice", "alice")
        repo.gated, repo.readers = "auto", {"alice"}
        snapshot_download("org/name", endpoint=hub.endpoint, token="hf_alice", cache_dir=…)
        assert hub.resolves == 2 and not hub.cdn.violations

Repositories: `tests.support.hub_repos`; signed addresses, which expire: `tests.support.hub_cdn`. Both servers are an
`Origin`: `requests`, `wait_for`, `fault` (also by pattern: `hub.fault("*/resolve/*", Fault(status=503), times=2)`),
`stop`. What it answers follows huggingface_hub 2.4.0 (file_download.py, hf_api.py, utils/_http.py) and what
huggingface.co sent in 2025 and 2026:

- plain files: 307 to /api/resolve-cache/… (unless `resolve_cache` is False), then the bytes, ETag the git blob's id;
- LFS files: 302 to the CDN with X-Linked-Etag and X-Linked-Size, X-Repo-Commit on all;
- quotas per user and bucket in fixed windows of `clock`: "resolvers" for /resolve/, "api" for /api/, "pages" else.
  /api/resolve-cache/ is not counted.
"""

from __future__ import annotations

import base64
import binascii
import fnmatch
import json
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import parse_qs, quote, unquote, urlencode

from tests.support.hub_cdn import Cdn
from tests.support.hub_repos import Commit, HubFile, Repo
from tests.support.origin import Answer, Asked, Fault, Origin, Request, of_file, plain

_VERBS = ("revision", "tree", "refs", "paths-info", "commits", "xet-read-token", "resolve")
_WINDOW_S = 300
_UNLIMITED = 100_000


class Refused(Exception):
    """An answer that is an error of the Hub: `code` goes into X-Error-Code, `message` into X-Error-Message."""

    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        said = {"X-Error-Code": code, "X-Error-Message": message, **(headers or {})}
        self.answer = _json({"error": message}, {name: value for name, value in said.items() if value}, status)


class Moved(Exception):
    """What was asked for has another address: 307 to `target`, a path with its query, as it stands."""

    def __init__(self, target: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(target)
        body = f"Temporary Redirect. Redirecting to {target}".encode()
        self.answer = plain(307, body, {"Location": target, **(headers or {})})


@dataclass
class _Bucket:
    quota: int = _UNLIMITED
    window: int = _WINDOW_S
    spent: dict[str, tuple[float, int]] = field(default_factory=dict)
    """By user: when the window began, and requests in it."""


class Hub(Origin):
    """See the module."""

    def __init__(self, clock: Callable[[], float] = time.time, *, tls: ssl.SSLContext | None = None) -> None:
        super().__init__({}, tls=tls)
        self.cdn = Cdn(lambda: self.clock(), tls=tls)
        self.clock = clock
        self.page_size = 1000
        """Of a tree; 50 at most with `expand`."""
        self.resolve_cache = True
        self._repos: dict[str, Repo] = {}
        self._moved: dict[str, str] = {}
        self._users: dict[str, str] = {}
        self._buckets = {name: _Bucket() for name in ("api", "resolvers", "pages")}
        self._hooks: list[tuple[str, Callable[[], object]]] = []

    @property
    def endpoint(self) -> str:
        """For HF_ENDPOINT and `endpoint=`."""
        return self.url().rstrip("/")

    def repo(self, name: str) -> Repo:
        """A new, empty repository, "org/name"."""
        assert name not in self._repos
        self._repos[name] = Repo(name)
        return self._repos[name]

    def rename(self, repo: Repo, name: str) -> None:
        """From now on its old name redirects to the new one."""
        self._moved[repo.id] = name
        self._repos[name] = repo
        repo.id = name

    def token(self, token: str, user: str) -> None:
        """From now on it is good, and the user's."""
        self._users[token] = user

    def limit(self, bucket: str, quota: int, window: int = _WINDOW_S) -> None:
        """So many requests of each user in so many seconds; begins anew. Anonymous is one user."""
        with self._lock:
            self._buckets[bucket] = _Bucket(quota, window)

    def before(self, name: str, work: Callable[[], object]) -> None:
        """Once, when the next request whose path matches comes: `work` runs first, then it is answered."""
        with self._lock:
            self._hooks.append((name, work))

    @property
    def resolves(self) -> int:
        """Requests so far that cost of the quota "resolvers"."""
        return sum(bucket_of(request.path) == "resolvers" for request in self.requests)

    def asked_of(self, pattern: str) -> list[Request]:
        """The requests so far whose path, without the first "/", matches."""
        return [found for found in self.requests if fnmatch.fnmatchcase(found.path.lstrip("/"), pattern)]

    def start(self) -> Self:
        self.cdn.start()
        return super().start()

    def stop(self) -> None:
        super().stop()
        self.cdn.stop()

    def answer(self, asked: Asked, fault: Fault) -> Answer:
        path = asked.target.partition("?")[0]
        self._run_hooks(path.lstrip("/"))
        quota: dict[str, str] = {}
        try:
            user = self._user(asked)
            quota = self._spend(bucket_of(path), user)
            answer = self._route(asked, user, fault)
        except (Refused, Moved) as e:
            answer = e.answer
        answer.headers.update(quota)
        return answer

    def _run_hooks(self, path: str) -> None:
        with self._lock:
            due = [hook for hook in self._hooks if fnmatch.fnmatchcase(path, hook[0])]
            self._hooks = [hook for hook in self._hooks if hook not in due]
        for _, work in due:
            work()

    def _user(self, asked: Asked) -> str:
        """ "" for anonymous."""
        said = asked.headers.get("authorization")
        if said is None:
            return ""
        user = self._users.get(said.removeprefix("Bearer "))
        if user is None or not said.startswith("Bearer "):
            raise Refused(401, "", "Invalid credentials in Authorization header")
        return user

    def _spend(self, name: str, user: str) -> dict[str, str]:
        if not name:
            return {}
        with self._lock:
            bucket = self._buckets[name]
            now = self.clock()
            began, count = bucket.spent.get(user, (now, 0))
            if now >= began + bucket.window:
                began, count = now, 0
            left = bucket.quota - count - 1
            bucket.spent[user] = (began, count + 1)
        wait = max(0, int(began + bucket.window - now))
        quota = {
            "RateLimit": f'"{name}";r={max(0, left)};t={wait}',
            "RateLimit-Policy": f'"fixed window";"{name}";q={bucket.quota};w={bucket.window}',
        }
        if left < 0:
            message = "You have reached your rate limit"
            raise Refused(429, "", message, quota | {"Retry-After": str(wait)})
        return quota

    def _route(self, asked: Asked, user: str, fault: Fault) -> Answer:
        parts = asked.target.partition("?")[0].lstrip("/").split("/")
        query = {key: values[-1] for key, values in parse_qs(asked.target.partition("?")[2]).items()}
        if parts[:2] == ["api", "models"] and len(parts) > 2:
            return self._api(asked, parts[2:], query, user)
        if parts[:3] == ["api", "resolve-cache", "models"] and len(parts) > 6:
            repo = self._readable(f"{parts[3]}/{parts[4]}", asked, user, files=True)
            commit = self._commit(repo, unquote(parts[5]))
            return self._plain_file(commit, unquote("/".join(parts[6:])), asked, fault)
        if "resolve" in parts[1:3]:
            return self._resolve(asked, parts, user, fault)
        raise Refused(404, "", "Sorry, we can't find the page you are looking for.")

    def _readable(self, name: str, asked: Asked, user: str, *, files: bool) -> Repo:
        """The repository, or why `user` may not see it (`files`: its files)."""
        repo = self._repos.get(name)
        reader = repo is not None and user in repo.readers
        if repo is None or (repo.private and not reader):
            if not user:
                raise Refused(401, "RepoNotFound", "Invalid username or password.")
            raise Refused(404, "RepoNotFound", "Repository not found")
        if repo.disabled:
            raise Refused(403, "", "Access to this resource is disabled.")
        if repo.gated and not reader and (files or repo.gated_lists):
            told = f"Access to model {name} is restricted"
            if not user:
                told += ". You must have access to it and be authenticated to access it. Please log in."
                raise Refused(401, "GatedRepo", told)
            raise Refused(403, "GatedRepo", f"{told} and you are not in the authorized list. Ask for access.")
        if name in self._moved:
            raise Moved(asked.target.replace(name, self._moved[name], 1))
        return repo

    def _commit(self, repo: Repo, revision: str) -> Commit:
        commit = repo.find(revision)
        if commit is None:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    def _api(self, asked: Asked, parts: list[str], query: Mapping[str, str], user: str) -> Answer:
        owned = len(parts) > 1 and parts[1] not in _VERBS
        name, rest = "/".join(parts[: 1 + owned]), parts[1 + owned :]
        repo = self._readable(name, asked, user, files=False)
        verb, revision = (rest[0] if rest else "revision"), unquote(rest[1]) if len(rest) > 1 else "main"
        if verb == "refs":
            return _json(repo.ref_lists(query.get("include_prs", "") not in ("", "0")))
        commit = self._commit(repo, revision)
        if verb == "revision":
            return _json(repo.info(commit, _yes(query, "blobs")))
        if verb == "tree":
            return self._tree(commit, asked, unquote("/".join(rest[2:])), query)
        if verb == "paths-info":
            return _paths_info(commit, parse_qs(asked.body.decode()))
        if verb == "commits":
            return _json(_history(repo, commit))
        if verb == "xet-read-token":
            return self._xet_token()
        raise Refused(404, "", "Sorry, we can't find the page you are looking for.")

    def _tree(self, commit: Commit, asked: Asked, under: str, query: Mapping[str, str]) -> Answer:
        entries = commit.tree(under, _yes(query, "recursive"), _yes(query, "expand"))
        if entries is None:
            raise Refused(404, "EntryNotFound", f"{under} does not exist on {commit.sha}")
        most = min(self.page_size, 50) if _yes(query, "expand") else self.page_size
        size = max(1, min(most, int(query.get("limit", most))))
        try:
            start = int(base64.urlsafe_b64decode(query.get("cursor", "MA==")))
        except (ValueError, binascii.Error):
            raise Refused(400, "", "Invalid cursor") from None
        headers = {}
        if start + size < len(entries):
            cursor = base64.urlsafe_b64encode(str(start + size).encode()).decode()
            kept = {**query, "limit": str(size), "cursor": cursor}
            path = asked.target.partition("?")[0].lstrip("/")
            following = self.url(f"{path}?{urlencode(kept)}")
            headers["Link"] = f'<{following}>; rel="next"'
        return _json(entries[start : start + size], headers)

    def _xet_token(self) -> Answer:
        """Good for nothing: no CAS is here."""
        said = {"casUrl": self.cdn.url().rstrip("/"), "accessToken": "xet-token", "exp": int(self.clock()) + 3600}
        names = {"casUrl": "X-Xet-Cas-Url", "accessToken": "X-Xet-Access-Token", "exp": "X-Xet-Token-Expiration"}
        return _json(said, {names[key]: str(value) for key, value in said.items()})

    def _resolve(self, asked: Asked, parts: list[str], user: str, fault: Fault) -> Answer:
        at = parts.index("resolve", 1)
        repo = self._readable("/".join(parts[:at]), asked, user, files=True)
        parts = parts[at + 1 :]
        depth = 3 if parts[0] == "refs" else 1
        commit = self._commit(repo, unquote("/".join(parts[:depth])))
        path = unquote("/".join(parts[depth:]))
        file = _entry(commit, path)
        headers = {"X-Repo-Commit": commit.sha, "Vary": "Origin, Accept", "Accept-Ranges": "bytes"}
        if file.xet is not None:
            token = self.url(f"api/models/{repo.id}/xet-read-token/{commit.sha}")
            headers |= {"X-Xet-Hash": file.xet, "Link": f'<{token}>; rel="xet-auth"'}
        linked = {"X-Linked-Etag": f'"{file.etag}"', "X-Linked-Size": str(file.content.size)}
        if file.sha256 is not None:
            location = self.cdn.sign(repo.id, path, file)
            return plain(302, f"Found. Redirecting to {location}".encode(), headers | linked | {"Location": location})
        if self.resolve_cache and repo.id.count("/") == 1:
            named = quote(asked.target.partition("?")[0], safe="")
            location = f"/api/resolve-cache/models/{repo.id}/{commit.sha}/{quote(path)}?{named}=&etag=%22{file.sha1}%22"
            raise Moved(location, headers)
        return self._plain_file(commit, path, asked, fault)

    def _plain_file(self, commit: Commit, path: str, asked: Asked, fault: Fault) -> Answer:
        file = _entry(commit, path)
        answer = of_file(file.content, fault.etag or file.content.etag, asked.headers, fault)
        answer.headers["X-Repo-Commit"] = commit.sha
        return answer


class Mirror(Origin):
    """Answers the API as `hub` does, and sends everything else there by 308, without X-Repo-Commit."""

    def __init__(self, hub: Hub) -> None:
        super().__init__({})
        self._hub = hub

    @property
    def endpoint(self) -> str:
        return self.url().rstrip("/")

    def answer(self, asked: Asked, fault: Fault) -> Answer:
        if asked.target.startswith("/api/models/"):
            return self._hub.answer(asked, fault)
        return plain(308, b"Permanent Redirect", {"Location": self._hub.url(asked.target.lstrip("/"))})


def bucket_of(path: str) -> str:
    """Whose quota a request costs; "" for none."""
    if "/resolve/" in path:
        return "resolvers"
    if path.startswith("/api/resolve-cache/"):
        return ""
    return "api" if path.startswith("/api/") else "pages"


def _entry(commit: Commit, path: str) -> HubFile:
    file = commit.files.get(path)
    if file is None:
        raise Refused(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": commit.sha})
    return file


def _paths_info(commit: Commit, form: Mapping[str, list[str]]) -> Answer:
    wanted, expand = form.get("paths", []), form.get("expand", ["false"])[-1].lower() == "true"
    entries = commit.tree("", True, expand) or []
    return _json([entry for entry in entries if entry["path"] in wanted])


def _history(repo: Repo, last: Commit) -> list[dict[str, Any]]:
    until = list(repo.commits).index(last.sha) + 1
    shas = list(repo.commits)[:until][::-1]
    said = {"authors": [{"user": "someone"}], "date": "2026-01-01T00:00:00.000Z", "message": ""}
    return [said | {"id": sha, "title": repo.commits[sha].title} for sha in shas]


def _yes(query: Mapping[str, str], name: str) -> bool:
    return query.get(name, "").lower() in ("1", "true")


def _json(what: object, headers: Mapping[str, str] | None = None, status: int = 200) -> Answer:
    body = json.dumps(what).encode()
    return Answer(
        status, {"Content-Type": "application/json; charset=utf-8", **(headers or {})}, body=body, length=len(body)
    )
