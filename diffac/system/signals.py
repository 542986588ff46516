"""Ctrl-C, SIGTERM and SIGHUP: whatever a process is doing, it ends within ten seconds, and what it has saved is whole.

Python runs signal handlers in the main thread and between two of its own instructions only: not while that thread is in
a call of C++ that compiles for minutes. So a thread of its own, the `_Listener`, learns of a signal at once, through
the descriptor that the handler in C writes to (`signal.set_wakeup_fd`), says that it was heard, and sees to it that the
end comes: first the main thread is asked to stop at its next safe point; after `PATIENCE` it is interrupted wherever it
is; after another `LEAVING` the process ends as it is. Another signal does the same as the time that runs out.
"""

from __future__ import annotations

import _thread
import contextlib
import multiprocessing
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType, TracebackType
from typing import Any, Protocol

from diffac.messages import printable

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
PATIENCE = 4.0
"""Seconds in which a run may come to the end of its step and save; then it is interrupted."""
LEAVING = 3.0
"""Seconds in which whoever was interrupted may tidy up; then the process ends."""
SAYING = 1.0
"""Seconds in which the terminal may take the line that says that a signal was heard."""

HEARD = "stopping after this step; again to stop at once"
"""What is said at the first signal."""
AGAIN = b"\0"
"""What the main thread tells the listener, which otherwise hears numbers of signals."""


class Stop(Protocol):
    """Whether somebody wants the run to end."""

    def raise_if_requested(self) -> None:
        """Raises the exception that ends the run, where somebody has asked for it."""
        ...

    @property
    def requested(self) -> bool: ...


class Interrupted(KeyboardInterrupt):
    """A signal has ended the run."""

    def __init__(self, signum: int, text: str = "") -> None:
        super().__init__(text)
        self.signum = signum


class StopRequest:
    """While it is entered, Ctrl-C, SIGTERM and SIGHUP ask for the end of what is done there.

    The first of them is only remembered, and said; the second, or `PATIENCE` seconds, raise `Interrupted` in the main
    thread; the third, or `LEAVING` seconds more, end the process with 128 plus the signal's number as exit code. In a
    program that is not diffac's own that last step is taken only for signals that would have ended it anyway (SIGTERM
    and SIGHUP without a handler, not Ctrl-C).

    Does nothing outside the main thread, where Python knows no signals, and to signals that are ignored (`nohup`). May
    be entered within another one, whose turn comes again afterwards.

    Args:
        patient: False: there is no step to wait for, so the first signal is like the second.
        owns_process: the process is diffac's own.
    """

    def __init__(self, *, patient: bool = True, owns_process: bool = False) -> None:
        self.patient, self.owns_process = patient, owns_process
        self.signum: int | None = None
        self.last_words: Callable[[], str] = lambda: "interrupted"
        """What is said where the process ends as it is."""
        self.answered = threading.Event()
        """Set when the listener has done what a signal asks for, and the line that says so is out."""
        self._listener: _Listener | None = None

    @property
    def requested(self) -> bool:
        """Whether a signal has come."""
        return self.signum is not None

    def raise_if_requested(self) -> None:
        """Raises `Interrupted` where a signal has come."""
        if self.signum is not None:
            raise Interrupted(self.signum)

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._listener = _Listener.active or _Listener()
            self._listener.enter(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._listener is not None:
            self._listener.leave(self)
            self._listener = None


class _Listener:
    """Hears the signals of this process while a `StopRequest` is entered. There is one at a time."""

    active: _Listener | None = None

    def __init__(self) -> None:
        self.requests: list[StopRequest] = []
        self.shielded = 0
        """How many of `undisturbed` the main thread is in."""
        self._calls = self._kicks = 0
        self._deferred = self._raised = False
        self._main = threading.get_ident()
        self._before: dict[int, Any] = {}

    def enter(self, request: StopRequest) -> None:
        self.requests.append(request)
        self._calls = 0
        if len(self.requests) > 1:
            return
        _Listener.active = self
        self._ear, self._mouth = socket.socketpair()
        self._mouth.setblocking(False)
        self._fd_before = signal.set_wakeup_fd(self._mouth.fileno(), warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._listen, name="diffac signals", daemon=True)
        self._thread.start()
        self._hook_before, sys.unraisablehook = sys.unraisablehook, self._swallowed
        for signum in SIGNALS:
            if signal.getsignal(signum) is not signal.SIG_IGN:
                self._before[signum] = signal.signal(signum, self._handle)

    def leave(self, request: StopRequest) -> None:
        try:
            if request.requested and request.patient:  # so that lines of what follows come after ours
                request.answered.wait(SAYING)
        finally:
            self._calls = 0
            self._raised |= request.requested
            if len(self.requests) > 1:
                self.requests.remove(request)
            else:
                self._close()

    def _close(self) -> None:
        """Puts back what was before."""
        self.shielded += 1  # nothing is left to interrupt
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        sys.unraisablehook = self._hook_before
        signal.set_wakeup_fd(self._fd_before)
        self.requests.clear()
        _Listener.active = None
        self._mouth.close()  # ends the thread
        self._thread.join()
        self._ear.close()

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        """What Python runs in the main thread: the first time for a patient request nothing but a note."""
        request = self.requests[-1]
        first, self._calls = self._calls == 0, self._calls + 1
        request.signum = request.signum or signum
        if first and request.patient:
            return
        if self.shielded:
            self._deferred = True
            return
        self._interrupt(request.signum)

    def raise_deferred(self) -> None:
        """Raises what came while the main thread was shielded."""
        if self._deferred and not self.shielded:
            self._deferred = False
            self._interrupt(self.requests[-1].signum or signal.SIGINT)

    def _interrupt(self, signum: int) -> None:
        """Raises `Interrupted`; in a process of diffac's own only once, so that its last lines are said undisturbed."""
        if not (self._raised and self._owns_process):
            self._raised = True
            raise Interrupted(signum)

    def _swallowed(self, unraisable: Any) -> None:
        """Where Python drops exceptions, as in `__del__` and at garbage collection, ours is raised again later."""
        if not isinstance(unraisable.exc_value, Interrupted):
            self._hook_before(unraisable)
            return
        self._raised = False
        with contextlib.suppress(OSError):
            self._mouth.send(AGAIN)

    @property
    def _owns_process(self) -> bool:
        return any(request.owns_process for request in self.requests)

    def _listen(self) -> None:
        stage, deadline = 0, None
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            ready, _, _ = select.select([self._ear], [], [], left)
            signum = None
            if ready:
                heard = self._ear.recv(4096)
                if not heard:
                    return
                if AGAIN in heard:
                    time.sleep(0.05)  # until the main thread is elsewhere
                    for request in self.requests[-1:]:
                        self._kick(request.signum)
                signums = [number for number in heard if number in self._before]
                own = min(self._kicks, len(signums))
                self._kicks -= own
                if len(signums) == own:
                    continue
                signum = signums[own]
            stage, deadline = self._go_further(stage, signum)

    def _go_further(self, stage: int, signum: int | None) -> tuple[int, float]:
        """The next stage and when it is over.

        Args:
            stage: 0: nothing has come; 1: a safe point is waited for; 2: the main thread was interrupted.
            signum: of the signal that came; None: time is over.
        """
        try:
            request = self.requests[-1]
        except IndexError:  # all are about to leave
            return stage, time.monotonic() + LEAVING
        request.signum = request.signum or signum
        if stage == 0 and request.patient:
            _say(HEARD, request.answered)
            return 1, time.monotonic() + PATIENCE
        request.answered.set()
        if stage < 2:
            if signum is None:
                self._kick(request.signum)
            return 2, time.monotonic() + LEAVING
        self._end(request, request.signum or signal.SIGINT)
        return 2, time.monotonic() + LEAVING

    def _kick(self, signum: int | None) -> None:
        """Has the main thread run `_handle`."""
        self._kicks += 1
        if hasattr(signal, "pthread_kill"):
            signal.pthread_kill(self._main, signum or signal.SIGINT)  # also ends a wait of the system
        else:
            _thread.interrupt_main(signal.Signals(signum or signal.SIGINT))

    def _end(self, request: StopRequest, signum: int) -> None:
        """Ends the process, where that is for us to do."""
        if not self._owns_process and self._before.get(signum) is not signal.SIG_DFL:
            return
        for child in multiprocessing.active_children():
            child.kill()
        _write_now(request.last_words())
        os._exit(128 + signum)


def _say(text: str, said: threading.Event) -> None:
    """Prints a line without waiting for a terminal that takes none.

    Args:
        text: the line.
        said: is set when it is out.
    """

    def work() -> None:
        print(text, file=sys.stderr, flush=True)
        said.set()

    threading.Thread(target=work, daemon=True).start()


def _write_now(text: str) -> None:
    """Writes lines to standard error past all buffers and locks, if it takes any."""
    text = "\n".join(map(printable, text.split("\n")))
    cursor = b"\x1b[?25h" if os.isatty(2) else b""  # a progress bar has hidden it
    with contextlib.suppress(OSError):
        if select.select([], [2], [], 0.2)[1]:
            os.write(2, cursor + f"\n{text}\n".encode(errors="backslashreplace"))


def _of_this_thread() -> _Listener | None:
    """The listener, if this is the thread that it interrupts."""
    listener = _Listener.active
    return listener if listener is not None and threading.get_ident() == listener._main else None


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Within, a second signal waits: for what must be finished or dropped as a whole, such as saving."""
    listener = _of_this_thread()
    if listener is None:
        yield
        return
    listener.shielded += 1
    try:
        yield
    finally:
        listener.shielded -= 1
    listener.raise_deferred()


@contextlib.contextmanager
def children_undisturbed(signums: Sequence[int] = SIGNALS) -> Iterator[None]:
    """Processes that are started within do not get the signals that the terminal sends to the whole group.

    It is this process that hears them, in another thread, and stops them.

    Args:
        signums: which they are to be spared; it must leave one by which this process stops them, if that is its way.
    """
    if _of_this_thread() is None or not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signums)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
