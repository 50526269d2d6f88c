"""A worker's process with the fake engine: server/worker/__main__.py, with another way to make an engine."""

from __future__ import annotations

import json
import sys
import time
from unittest import mock

from scripts.reliability.daemon import Behaving, Behaviour
from server.catalogue.architecture import Architecture
from server.engines.load import Made
from server.worker import __main__ as process

BEHAVIOUR = Behaviour(**json.loads(sys.argv[1]))


def load_fake(_folder: object, arch: Architecture, *_: object, **__: object) -> Made:
    time.sleep(BEHAVIOUR.load_s)
    return Made(Behaving(BEHAVIOUR, arch.vocabulary), "fake", 0, separate_head=False)


if __name__ == "__main__":
    with mock.patch.object(process, "load_engine", load_fake):
        process.main()
