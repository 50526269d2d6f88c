"""Models as OpenAI names them, by one text each: `demo`, or `demo/native/int8` for one precision of it."""

from __future__ import annotations

import time
from typing import Any, TypeAlias

from protocol.aio import AsyncClient

Which: TypeAlias = dict[str, Any]
"""Model, engine and precision of a request, as far as they are named."""
STARTED = int(time.time())


class Names:
    """Reader of models' names. The engines that they may have are asked of the daemon, once for each of its starts."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self._engines: dict[str, list[str]] = {}

    async def which(self, name: str | None) -> Which:
        """Return model, engine and precision of a request, as far as its model's name has them.

        Raises: what a call of the daemon raises.
        """
        if name is None:
            return {}
        model, *rest = name.rsplit("/", 2)
        if len(rest) != 2:
            return {"model": name}
        if rest[1] not in self._engines.get(rest[0], ()):
            self._engines = {engine.name: engine.precisions for engine in (await self._client.hello()).engines}
        if rest[1] not in self._engines.get(rest[0], ()):
            return {"model": name}  # of the hub, which has names with a slash
        return {"model": model, "engine": rest[0], "precision": rest[1]}

    async def loaded(self) -> list[dict[str, object]]:
        """Return what is loaded, as OpenAI lists models."""
        return [
            {
                "id": f"{info.name}/{one.engine}/{one.precision}",
                "object": "model",
                "created": STARTED,
                "owned_by": "gpt2d",
                "max_model_len": info.context,
            }
            for info in await self._client.models()
            for one in info.precisions
            if one.loaded
        ]
