#!/usr/bin/python3 -I
"""An external provider of wasmcloud:secrets: files that an operator lays into its directory, behind wRPC, with nothing but
Python's standard library.

Sidereal starts this program, writes its settings as one line of JSON to stdin, and connects to the unix socket that
they name, once for each call. A call (all numbers LEB128): 0x00, instance, function, then frames: the length of a path,
its parts, the length of what follows. Parameters come on the empty path, and the answer goes back on it.
"""

import io
import json
import os
import signal
import socket
import sys
import threading

STORE = "sidereal:secrets/store@0.1.0."
MAX_VALUE = 64 << 10


# --- values -----------------------------------------------------------------------------------------------------------


def number(n):
    out = bytearray()
    while n > 0x7F:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    return bytes(out + bytes([n]))


def data(value):
    return number(len(value)) + value


def text(value):
    return data(value.encode())


def frame(payload, *path):
    return number(len(path)) + b"".join(map(number, path)) + data(payload)


OK, REFUSED, PENDING, NONE, SOME = b"\0", b"\1", b"\0", b"\0", b"\1"


class Refused(Exception):
    """Answered as an error, with its text."""


class Reader:
    """Values from what `read(count)` gives."""

    def __init__(self, read):
        self.read = read

    def bytes(self, count):
        got = self.read(count)
        if len(got) < count:
            raise EOFError
        return got

    def number(self):
        result = shift = 0
        while True:
            (byte,) = self.bytes(1)
            result |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return result
            if shift > 63:
                raise ValueError("a number is too long")

    def data(self, limit=MAX_VALUE):
        length = self.number()
        if length > limit:
            raise ValueError("a value is too long")
        return self.bytes(length)

    def text(self):
        return self.data().decode()

    def option(self, value):
        return value() if self.bytes(1) == SOME else None

    def list(self, item):
        return [item() for _ in range(self.number())]

    def frame(self):
        """The path of the next frame and what is in it."""
        return [self.number() for _ in range(min(self.number(), 9))], self.data()


# --- calls ------------------------------------------------------------------------------------------------------------


NOT_FOUND, DENIED, UNAVAILABLE = b"\0", b"\1", b"\2"


def answer(folder, function, args, call, connection):
    if function != STORE + "get":
        raise Refused(f"no such function: {function}")
    # Both are names that the platform has checked: no dots at the start, no slashes.
    name, field = args.text(), args.option(args.text)
    path = os.path.join(folder, name if field is None else f"{name}.{field}")
    try:
        with open(path, "rb") as file:
            # Grows with each change, so that whoever has the old value knows that there is another one.
            version = os.fstat(file.fileno()).st_mtime_ns
            value = file.read(MAX_VALUE + 1)
    except FileNotFoundError:
        connection.sendall(frame(REFUSED + NOT_FOUND))
    except PermissionError as error:
        connection.sendall(frame(REFUSED + DENIED + text(error.strerror)))
    except OSError as error:
        connection.sendall(frame(REFUSED + UNAVAILABLE + text(error.strerror)))
    else:
        connection.sendall(frame(OK + number(version) + data(value)))


def serve(connection, state):
    """One call, which is one connection."""
    with connection, connection.makefile("rb") as stream:
        call = Reader(stream.read)
        try:
            if call.bytes(1) != b"\0":
                return
            function = call.text() + "." + call.text()
            path, params = call.frame()
            if path:
                return
            try:
                answer(state, function, Reader(io.BytesIO(params).read), call, connection)
            except Refused as error:
                connection.sendall(frame(REFUSED + UNAVAILABLE + text(str(error))))
        except (EOFError, ValueError, OSError) as error:
            if not isinstance(error, (BrokenPipeError, ConnectionError)):
                print(f"a call was given up: {error!r}", file=sys.stderr, flush=True)


def main():
    settings = json.loads(sys.stdin.readline())
    # Stdin ends when the platform wants no more of us.
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    state = settings["data"]
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(settings["socket"])
    listener.listen(1024)
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=serve, args=(connection, state), daemon=True).start()


main()
