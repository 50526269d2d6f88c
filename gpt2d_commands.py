"""The installed commands gpt2d-server, gpt2d-client, gpt2d-keygen and gpt2d-http.

Our packages have ordinary names, and a folder on PYTHONPATH comes before the installed packages. So the commands begin
here, in a module whose name is nobody else's, and look for ours beside it first where another one would be taken.
"""

from __future__ import annotations

import sys

try:
    from pathlib import Path

    FOLDER = Path(__file__).resolve().parent
    OWN = ("protocol", "server", "client")

    def is_hidden(package: str) -> bool:
        """Return True if an import would take another package, or a file, of that name."""
        names = (f"{package}/__init__.py", f"{package}.py")
        takes = (folder for folder in map(Path, sys.path) if any((folder / name).exists() for name in names))
        return next(takes, FOLDER).resolve() != FOLDER

    if any(is_hidden(package) for package in OWN):
        sys.path.insert(0, str(FOLDER))
except KeyboardInterrupt:  # these take a moment, in which no traceback helps
    sys.exit(130)


def server() -> None:
    from server.__main__ import main

    main()


def client() -> None:
    from client.__main__ import main

    main()


def keygen() -> None:
    from server.keygen import main

    main()


def http() -> None:
    from client.doors.http.__main__ import main

    main()
