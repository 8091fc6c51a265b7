"""Sources with settings of their own, closed at the end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from tests.support.scripted_s3 import ScriptedS3
from tests.support.seaweed import ADMIN, Keys
from weightd.core.credentials import Credential
from weightd.core.errors import WeightdError
from weightd.core.manifest import FileSpec, Manifest
from weightd.core.refs import parse_ref
from weightd.sources import safetensors_repo as repo
from weightd.sources.connection import HttpOptions
from weightd.sources.registry import SourceOptions, Sources
from weightd.sources.s3_settings import S3Options

Make = Callable[..., Sources]


@pytest.fixture(autouse=True)
def _clean(no_aws: None) -> None:
    """Nothing of this user's."""


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    """`make(endpoint, credentials, **options)`: sources whose `[s3]` has these options."""
    made: list[Sources] = []

    def one(
        endpoint: str,
        credentials: tuple[Credential, ...] = (),
        http: HttpOptions | None = None,
        processes: int = 0,
        **options: Any,
    ) -> Sources:
        http = http or HttpOptions(connect_timeout=5, read_timeout=5, attempts=2, pause=0.01)
        s3 = S3Options(endpoint=endpoint, **options)
        made.append(Sources(SourceOptions(http=http, s3=s3, credentials=credentials, processes=processes)))
        return made[-1]

    yield one
    for source in made:
        await source.close()


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[[Keys], None]:
    """Puts keys into the environment."""

    def put(keys: Keys) -> None:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", keys.id)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", keys.secret)

    return put


@pytest.fixture
def admin(use: Callable[[Keys], None]) -> None:
    """Who may do everything is in the environment."""
    use(ADMIN)


@pytest.fixture
def scripted(admin: None) -> Iterator[ScriptedS3]:
    with ScriptedS3() as server:
        yield server


async def resolve(source: Sources, ref: str) -> Manifest:
    return await source.resolve(parse_ref(ref))


async def read(source: Sources, file: FileSpec) -> bytes:
    return await repo.read_in_thread(source.reader(file), file.size)


async def fault(source: Sources, ref: str) -> WeightdError:
    """What resolving it raises: with a remedy, and without a secret."""
    with pytest.raises(WeightdError) as e:
        await resolve(source, ref)
    shown = f"{e.value}{e.value!r}{vars(e.value)}"
    assert e.value.__cause__ is None
    assert e.value.__suppress_context__, "what botocore says is shown to nobody"
    assert "s3cr3t" not in shown
    assert "Signature=" not in shown
    assert e.value.remedy
    assert e.value.ref
    return e.value
