"""A peer that asks 900 times a second for a long answer, and reads none: python -m scripts.reliability.deaf ENDPOINT"""

from __future__ import annotations

import sys
import time

from protocol import codec, messages as m
from scripts.reliability import zmtp


def main() -> None:
    peer = zmtp.connect(sys.argv[1], receive_buffer=4096, timeout=60)
    question = b"".join(zmtp.frame(codec.encode(m.Hello(id=i + 1))) for i in range(9))
    try:
        while True:
            peer.sendall(question)
            time.sleep(0.01)
    except OSError:
        time.sleep(60)  # cut off; it need not end before it is killed


if __name__ == "__main__":
    main()
