"""The paths of the door, and what each request passes before it is answered."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from typing import Any, TypeAlias

import msgspec
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from client.doors.http import fields
from client.doors.http.catalogue import Names
from client.doors.http.chat import Conversation
from client.doors.http.completions import Completions
from client.doors.http.errors import SERVER, Refused, refused
from client.doors.http.guard import Guard, read_body
from client.doors.http.leaving import Events, Left, stopping, unless_left
from protocol import messages as m
from protocol.aio import AsyncClient
from protocol.errors import ConnectionFailed, Gpt2dError
from protocol.keys import Address
from protocol.tokens import pieces_of

HEALTH_S = 5.0
LEFT = 499
"""Status for the log alone: nobody reads it."""

Answer: TypeAlias = Any
"""A response of Starlette, or another application of ASGI."""
Handler: TypeAlias = Callable[[Request], Coroutine[Any, Any, Answer]]


class Door:
    """What answers: one connection to the daemon for all who come."""

    def __init__(self, address: Address, guard: Guard) -> None:
        self._address = address
        self._guard = guard

    def app(self) -> Starlette:
        """Return the application."""
        posts: dict[str, Handler] = {
            "/v1/completions": self._completions,
            "/v1/chat/completions": self._chat,
            "/tokenize": self._tokenize,
            "/detokenize": self._detokenize,
            "/models/load": self._load,
            "/models/unload": self._unload,
        }
        gets: dict[str, Handler] = {
            "/v1/models": self._models,
            "/v1/models/{name:path}": self._model,
            "/tokenizer_info": self._tokenizer_info,
        }
        routes = [Route(path, self._guarded(handler), methods=["POST"]) for path, handler in posts.items()]
        routes += [Route(path, self._guarded(handler), methods=["GET"]) for path, handler in gets.items()]
        routes.append(Route("/health", self._guarded(self._health, open_to_all=True), methods=["GET"]))
        middleware = []
        if self._guard.origins:
            allowed: dict[str, Any] = {"allow_origins": list(self._guard.origins), "allow_methods": ["GET", "POST"]}
            middleware.append(Middleware(CORSMiddleware, **allowed, allow_headers=["Authorization", "Content-Type"]))
        return Starlette(
            routes=routes,
            middleware=middleware,
            lifespan=self._connected,
            exception_handlers={404: _no_such_path, 405: _wrong_method, Exception: _fault},
        )

    @contextlib.asynccontextmanager
    async def _connected(self, _: Starlette) -> AsyncIterator[None]:
        """Hold the connection as long as the door is open."""
        address = self._address
        key = address.key.secret if address.key else None
        async with AsyncClient(address.endpoint, server_key=address.server_key, key=key) as client:
            self._client = client
            self._names = Names(client)
            yield

    def _guarded(self, handler: Handler, *, open_to_all: bool = False) -> Handler:
        """Return a handler whose errors are answers, and whose work ends when the client leaves."""

        async def answer(request: Request) -> Answer:
            try:
                request.state.role = self._guard.check(request, open_to_all=open_to_all)
                request.state.body = await read_body(request)
                return await unless_left(request.receive, handler(request))
            except Left:
                return Response(status_code=LEFT)
            except asyncio.CancelledError:  # by uvicorn, which has waited long enough for the answers
                return _error(stopping())
            except Gpt2dError as e:
                return _error(refused(e))
            except Refused as e:
                return _error(e)

        return answer

    async def _completions(self, request: Request) -> Answer:
        body = fields.read(fields.Completion, request.state.body)
        answer = Completions(self._client, body, await self._names.which(body.model))
        return await _events(answer.pieces()) if body.stream else _json(await answer.whole())

    async def _chat(self, request: Request) -> Answer:
        body = fields.read(fields.Chat, request.state.body)
        answer = Conversation(self._client, body, await self._names.which(body.model))
        return await _events(answer.pieces()) if body.stream else _json(await answer.whole())

    async def _models(self, _: Request) -> Answer:
        return _json({"object": "list", "data": await self._names.loaded()})

    async def _model(self, request: Request) -> Answer:
        name = request.path_params["name"]
        for one in await self._names.loaded():
            if name == one["id"] or str(one["id"]).startswith(f"{name}/"):
                return _json(one)
        raise Refused(
            404, f"the model {name!r} is not loaded; GET /v1/models lists those that are", code="model_not_found"
        )

    async def _tokenize(self, request: Request) -> Answer:
        body = fields.read(fields.Tokenize, request.state.body)
        which = await self._names.which(body.model)
        told = await self._client.tokenize(body.prompt, about=True, **which)
        about = _about(told)
        before = len(about.before) if body.add_special_tokens is False else 0
        texts = None
        if body.return_token_strs:
            texts = [piece.decode(errors="replace") for piece in pieces_of(told)[before:]]
        ids = told.ids[before:]
        return _json({"count": len(ids), "max_model_len": about.context, "tokens": ids, "token_strs": texts})

    async def _detokenize(self, request: Request) -> Answer:
        body = fields.read(fields.Detokenize, request.state.body)
        told = await self._client.tokenize(ids=body.tokens, **await self._names.which(body.model))
        return _json({"prompt": told.text})

    async def _tokenizer_info(self, request: Request) -> Answer:
        which = await self._names.which(request.query_params.get("model"))
        about = _about(await self._client.tokenize("", about=True, **which))
        return _json(
            {
                "tokenizer_class": "gpt2d",
                "bos_token": about.names.get("bos_token"),
                "eos_token": about.names.get("eos_token"),
                "chat_template": about.chat_template or None,
                "model_max_length": about.context,
            }
        )

    async def _load(self, request: Request) -> Answer:
        self._check_admin(request)
        body = fields.read(fields.Load, request.state.body)
        loaded = await self._client.load(**await self._names.which(body.model))
        return _json({"id": f"{loaded.model}/{loaded.engine}/{loaded.precision}", "already": loaded.already})

    async def _unload(self, request: Request) -> Answer:
        self._check_admin(request)
        body = fields.read(fields.Load, request.state.body)
        return _json({"ids": await self._client.unload(**await self._names.which(body.model))})

    async def _health(self, _: Request) -> Answer:
        try:
            workers = (await self._client.ping(timeout=HEALTH_S)).workers
        except ConnectionFailed as e:
            raise Refused(503, str(e), SERVER) from None
        if not any(worker.state == "ready" for worker in workers):
            raise Refused(503, "no model is loaded", SERVER)
        return _json({"status": "ok"})

    def _check_admin(self, request: Request) -> None:
        if request.state.role != "admin":
            raise Refused(
                403,
                "models are loaded and unloaded with a token of the role admin (gpt2d-http --tokens FILE), or by "
                "gpt2d-client",
                "permission_error",
            )


def _about(told: m.Tokenized) -> m.TokenizerInfo:
    """Return what is told of the tokenizer. Raises: Refused."""
    if told.about is None:
        raise Refused(501, "the server is older than this door, and tells nothing of its tokenizers")
    return told.about


async def _events(pieces: AsyncGenerator[bytes]) -> Events:
    """Return a response that begins when its first piece is there: until then an error has a status of its own."""
    return Events(_told(pieces), await anext(pieces))


async def _told(pieces: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    """Yield the pieces; an error is the last of them."""
    try:
        async with contextlib.aclosing(pieces):
            async for piece in pieces:
                yield piece
    except Gpt2dError as e:
        yield refused(e).body()
    except Refused as e:
        yield e.body()


def _json(content: bytes | dict[str, Any]) -> Response:
    body = content if isinstance(content, bytes) else msgspec.json.encode(content)
    return Response(body, media_type="application/json")


def _error(error: Refused) -> Response:
    headers = {"www-authenticate": "Bearer"} if error.status == 401 else None
    return Response(error.body(), error.status, headers, "application/json")


async def _no_such_path(request: Request, _: Exception) -> Response:
    return _error(Refused(404, f"there is nothing at {request.url.path[:200]}; docs/http.md lists what there is"))


async def _wrong_method(request: Request, _: Exception) -> Response:
    return _error(Refused(405, f"{request.url.path[:200]} does not take {request.method}"))


async def _fault(_: Request, error: Exception) -> Response:
    return _error(Refused(500, f"a fault of gpt2d-http ({type(error).__name__}); its log has more", SERVER))
