"""The protocol of both sides: typed messages, their bytes, and clients for scripts.

`from protocol import Client` is all that a script needs; PROTOCOL.md is for those who write a client of their own.
"""

from protocol.aio import AsyncClient, AsyncStream
from protocol.client import Client, Stream
from protocol.connection import Connection
from protocol.errors import Gpt2dError
from protocol.keys import DEFAULT_ENDPOINT
from protocol.ledger import Ledger

__all__ = ["DEFAULT_ENDPOINT", "AsyncClient", "AsyncStream", "Client", "Connection", "Gpt2dError", "Ledger", "Stream"]
