"""What the client makes of its surroundings: a session without a screen, or with one that it cannot use."""

from __future__ import annotations

import os
import re
import select
import subprocess
import sys
import time

import pytest

from client.__main__ import has_display
from client.libraries import what_is_missing
from protocol import Client
from scripts.daemon import Daemon
from tests.client.test_terminal import CONTROL
from tests.conftest import WINDOW

pytestmark = pytest.mark.usefixtures("home")  # a terminal keeps what is typed in it
NO_SCREEN = {"DISPLAY", "WAYLAND_DISPLAY", "XDG_SESSION_TYPE"}


def surroundings(**variables: str) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in NO_SCREEN} | {"TERM": "xterm"} | variables


def at_a_terminal(*arguments: str, environment: dict[str, str]) -> str:
    """Start the client, leave it with Ctrl-D at its first prompt, and return all that it shows."""
    import pty

    main, child = pty.openpty()
    command = [sys.executable, "-m", "client", *arguments]
    process = subprocess.Popen(
        command, stdin=child, stdout=child, stderr=child, env=environment, start_new_session=True
    )
    os.close(child)
    shown, give_up = "", time.monotonic() + 60
    try:
        while not re.search(r"/help lists[^>]*>[\s\x08]*$", CONTROL.sub("", shown)):
            assert time.monotonic() < give_up and process.poll() is None, shown
            if select.select([main], [], [], 0.1)[0]:
                shown += os.read(main, 4096).decode(errors="replace")
        os.write(main, b"\x04")
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        os.close(main)
    return " ".join(shown.split())


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a window needs no display to be named")
@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"WAYLAND_DISPLAY": "wayland-0"}, "no XWayland, which it needs; install it (Debian, Ubuntu: `apt install"),
        ({"DISPLAY": "nowhere"}, "Failed to open display nowhere; see docs/troubleshooting.md"),
        ({}, ""),
    ],
    ids=["wayland alone", "a display that is gone", "nothing"],
)
def test_where_no_window_can_be_opened_it_says_so_and_goes_on_in_the_terminal(
    shared_daemon: Daemon, variables: dict[str, str], said: str
) -> None:
    if "DISPLAY" in variables:
        pytest.importorskip("client.window.loop", exc_type=ImportError, reason=WINDOW)
    shown = at_a_terminal(shared_daemon.endpoint, environment=surroundings(**variables))
    assert said in shown and "loaded: demo/native/int8" in shown and "Traceback" not in shown
    assert ("the window cannot be opened" in shown) == ("this is the terminal instead" in shown) == bool(said)


def test_where_opengl_is_too_old_it_says_so_and_goes_on_in_the_terminal(screen: str, shared_daemon: Daemon) -> None:
    """As where there is only OpenGL ES."""
    pytest.importorskip("client.window.loop", exc_type=ImportError, reason=WINDOW)
    variables = {"DISPLAY": screen, "MESA_GL_VERSION_OVERRIDE": "2.1", "MESA_GLSL_VERSION_OVERRIDE": "120"}
    shown = at_a_terminal(shared_daemon.endpoint, environment=surroundings(**variables))
    assert "it needs OpenGL 3.1 or newer (" in shown and "this is the terminal instead" in shown
    assert "loaded: demo/native/int8" in shown and "Traceback" not in shown


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a window needs no display to be named")
def test_without_a_terminal_it_ends_with_that_sentence() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "client", "tcp://127.0.0.1:1"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        env=surroundings(WAYLAND_DISPLAY="wayland-0"),
    )
    assert done.returncode == 1 and "no XWayland" in done.stderr and "--terminal does the same work" in done.stderr


@pytest.mark.parametrize("text", ["", "\n"])
def test_an_empty_stdin_is_not_a_prompt(text: str, shared_daemon: Daemon) -> None:
    """As a service, cron or ssh without -t starts it, and as a command that failed leaves a pipe."""
    command = [sys.executable, "-m", "client", shared_daemon.endpoint, "--max-new-tokens", "3"]
    for more, code, said in (([], 1, "give the text with --prompt"), (["--prompt", ""], 0, " tokens/s")):
        done = subprocess.run(
            [*command, *more], input=text, capture_output=True, text=True, timeout=60, env=surroundings()
        )
        assert done.returncode == code and said in done.stderr, done.stderr
        assert ("stdin is empty" in done.stderr) is (code == 1) and (code == 0 or not done.stdout)


def test_a_stdin_of_another_encoding_is_refused(shared_daemon: Daemon, client: Client) -> None:
    """A byte order mark, as editors of Windows write it, is not part of the prompt."""
    command = [sys.executable, "-m", "client", shared_daemon.endpoint, "--set", "seed=1", "-n", "5"]

    def given(data: bytes) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(command, input=data, capture_output=True, timeout=60, env=surroundings(), check=False)

    refused = given("café".encode("latin-1"))
    assert (refused.returncode, refused.stdout) == (1, b"") and b"stdin is not UTF-8" in refused.stderr
    want = client.generate("café", seed=1, max_new_tokens=5).text
    assert given("\ufeffcafé\n".encode()).stdout.decode() == f"{want}\n"


def test_a_stdin_that_does_not_end_is_said(shared_daemon: Daemon) -> None:
    """So is ssh's, where there is no -t."""
    command = [sys.executable, "-m", "client", shared_daemon.endpoint, "--max-new-tokens", "3"]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=surroundings())
    assert process.stderr and "reading the prompt from stdin, to its end" in process.stderr.readline()
    text, told = process.communicate("Shall I", timeout=60)
    assert process.returncode == 0 and text and "2 + 3 tokens" in told


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_over_ssh_a_system_with_a_screen_of_its_own_has_none(monkeypatch: pytest.MonkeyPatch, system: str) -> None:
    monkeypatch.setattr("sys.platform", system)
    monkeypatch.delenv("SSH_CONNECTION", raising=False)
    assert has_display()
    monkeypatch.setenv("SSH_CONNECTION", "192.0.2.1 50000 192.0.2.2 22")
    assert not has_display()


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full is Linux's")
@pytest.mark.parametrize(
    ("redirection", "said"),
    [(">/dev/full", "the text cannot be read or written: No space left on device"), (">&-", "stdout is closed, so no")],
)
def test_a_text_that_cannot_be_written_is_one_sentence(redirection: str, said: str, shared_daemon: Daemon) -> None:
    command = f'exec "{sys.executable}" -m client {shared_daemon.endpoint} --prompt x --max-new-tokens 3 {redirection}'
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and said in done.stderr.splitlines()[-1], done.stderr
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr


@pytest.mark.parametrize(
    ("system", "machine", "error", "said"),
    [
        (
            "linux",
            "x86_64",
            ImportError("libX11.so.6: cannot open shared object file"),
            "apt install libx11-6 libxext6",
        ),
        (
            "linux",
            "x86_64",
            ImportError("Unable to load OpenGL or GL library"),
            "dnf install libX11 libXext mesa-libGL",
        ),
        ("linux", "x86_64", ModuleNotFoundError("No module named 'glfw'", name="glfw"), "pip install"),
        ("darwin", "x86_64", ModuleNotFoundError("x", name="imgui_bundle"), "Macs with Intel processors"),
        ("darwin", "arm64", ModuleNotFoundError("x", name="imgui_bundle"), "pip install"),
        ("win32", "AMD64", ImportError("DLL load failed"), "see docs/troubleshooting.md"),
    ],
)
def test_libraries_of_the_window_that_are_missing_are_named_with_the_command(
    system: str, machine: str, error: ImportError, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr("platform.machine", lambda: machine)
    assert said in what_is_missing(error)
