"""The container's HEALTHCHECK: exits with 0 if a daemon answers a ping.

python healthcheck.py FILE    which holds an endpoint, or the connect line of a key that gpt2d-keygen made
"""

from __future__ import annotations

import sys
from pathlib import Path

from protocol import Client, Gpt2dError

try:
    with Client(Path(sys.argv[1]).read_text(encoding="ascii").strip()) as client:
        client.ping()
except (OSError, ValueError, Gpt2dError) as e:
    sys.exit(str(e))
