"""A source that reads a scripted Hub with whatever token a test gives it."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.e2e.host import safetensors
from tests.support.hub import Hub
from weightd.core.manifest import FileSpec, Manifest
from weightd.core.refs import parse_ref
from weightd.sources import safetensors_repo
from weightd.sources.asker import Aborted, Asker
from weightd.sources.connection import HttpOptions
from weightd.sources.hub import HubSource
from weightd.sources.hub_access import Access, HubOptions
from weightd.sources.hub_home import Home
from weightd.sources.quota import Quotas
from weightd.sources.receiving import Receiving

WEIGHTS = safetensors(300_000)
FILES = {
    "config.json": b'{"model_type": "test"}',
    "README.md": b"# A model\n",
    "tokenizer.json": b"{}" * 500,
    "model.safetensors": WEIGHTS,
    "pytorch_model.bin": WEIGHTS[:1000],
    "onnx/deep/model.onnx": WEIGHTS[:1000],
}
CHOSEN = ["README.md", "config.json", "model.safetensors", "tokenizer.json"]


@dataclass
class World:
    """`home` and `token` are what huggingface_hub would say; `waits` are the pauses, which only move the clock:
    that of the Hub too, once it `ticks`."""

    hub: Hub
    home: Home
    token: str = ""
    options: HubOptions = field(default_factory=HubOptions)
    waits: list[float] = field(default_factory=list)
    now: float = 1000.0
    receiving: Receiving = field(default_factory=lambda: Receiving(HttpOptions(connect_timeout=5, read_timeout=5)))
    sources: list[HubSource] = field(default_factory=list)

    @property
    def source(self) -> HubSource:
        """A new one, that knows nothing yet."""
        quotas = Quotas(lambda: self.now)
        access = Access(self.options, lambda: self.home, lambda: self.token)
        asker = Asker(self.receiving.pool, quotas, self._pause)
        found = HubSource(self.receiving, self.options, access=access, asker=asker, quotas=quotas)
        self.sources.append(found)
        return found

    def _pause(self, seconds: float, aborted: Aborted) -> None:
        self.waits.append(seconds)
        self.now += seconds

    async def close(self) -> None:
        for source in self.sources:
            await source.close()
        await self.receiving.close()

    def ticks(self) -> None:
        self.hub.clock = lambda: self.now

    async def resolve(self, text: str = "hf://org/name") -> Manifest:
        return await self.source.resolve(parse_ref(text))

    async def read(self, file: FileSpec) -> bytes:
        """Of the source that was made last."""
        return await safetensors_repo.read_in_thread(self.sources[-1].reader(file), file.size)

    async def contents(self, text: str = "hf://org/name") -> dict[str, bytes]:
        manifest = await self.resolve(text)
        return {f.path: await self.read(f) for f in manifest.files}
