#!/usr/bin/python3 -I
"""An external provider of sidereal:sql: a SQLite database behind wRPC, with nothing but Python's standard library.

Sidereal starts this program, writes its settings as one line of JSON to stdin, and connects to the unix socket that
they name, once for each call. A call (all numbers LEB128): 0x00, instance, function, then frames: the length of a path,
its parts, the length of what follows. Parameters come on the empty path, and the answer goes back on it.
"""

import io
import json
import os
import signal
import socket
import sqlite3
import struct
import sys
import threading
import time

DATABASE = "sidereal:sql/database@0.1.0."
MAX_PARAMS = 9 << 20
MAX_ROWS, MAX_BYTES = 10_000, 8 << 20
SECONDS = 10


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


def signed(n):
    out = bytearray()
    while not -0x40 <= n < 0x40:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    return bytes(out + bytes([n & 0x7F]))


OK, REFUSED, SOME = b"\0", b"\1", b"\1"
INVALID, VALUE, CONSTRAINT, CONFLICT, DENIED, TOO_LARGE, TIMEOUT, UNAVAILABLE = (bytes([n]) for n in range(1, 9))
RULES = {"UNIQUE": b"\0", "PRIMARYKEY": b"\0", "ROWID": b"\0", "NOTNULL": b"\1", "FOREIGNKEY": b"\2", "CHECK": b"\3"}


class Refused(Exception):
    """Answered as an error: which, and its text."""

    def __init__(self, kind, why):
        super().__init__(why)
        self.kind = kind


class Reader:
    """Values from what `read(count)` gives."""

    def __init__(self, read):
        self.read = read

    def signed(self):
        result = shift = 0
        while True:
            (byte,) = self.bytes(1)
            result |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return result - (1 << shift) if byte & 0x40 else result

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

    def data(self, limit=MAX_PARAMS):
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

    def value(self):
        kind = self.number()
        if kind == 0:
            return None
        if kind == 1:
            return self.bytes(1) == SOME
        if kind == 2:
            return self.signed()
        if kind == 3:
            return struct.unpack("<d", self.bytes(8))[0]
        return self.text() if kind == 4 else bytes(self.data())

    def statement(self):
        return self.text(), self.list(self.value)


def value(what):
    if what is None:
        return b"\0"
    if isinstance(what, bool):
        return b"\1" + bytes([what])
    if isinstance(what, int):
        return b"\2" + signed(what)
    if isinstance(what, float):
        return b"\3" + struct.pack("<d", what)
    return b"\4" + text(what) if isinstance(what, str) else b"\5" + data(bytes(what))


# --- the database -----------------------------------------------------------------------------------------------------


class Given(dict):
    """The values of `$1`, `$2`, …, and which of them the statement took."""

    def __init__(self, values):
        super().__init__()
        self.values, self.taken = values, set()

    def __getitem__(self, name):
        at = int(name) - 1
        self.taken.add(at)
        return self.values[at]

    def __contains__(self, name):
        return name.isdigit() and 0 < int(name) <= len(self.values)


def opened(path):
    """A connection whose transactions are ours alone."""
    # True and false come back as such from columns that are declared so.
    db = sqlite3.connect(path, timeout=5, isolation_level=None, detect_types=sqlite3.PARSE_DECLTYPES)
    db.execute("PRAGMA journal_mode = WAL")
    # On disk before it is acknowledged.
    db.execute("PRAGMA synchronous = FULL")
    db.execute("PRAGMA foreign_keys = ON")
    return db


def run(db, sql, values):
    """One statement: its cursor and how many rows it changed."""
    given, before = Given(values), db.total_changes
    cursor = db.execute(sql, given)
    if len(given.taken) != len(values):
        raise Refused(VALUE, f"the statement has {len(given.taken)} parameters, and {len(values)} values were given")
    return cursor, before


def rows(cursor):
    found, size = [], 0
    for row in cursor:
        row = b"".join(map(value, row))
        size += len(row)
        if len(found) == MAX_ROWS or size > MAX_BYTES:
            raise Refused(TOO_LARGE, f"the answer has more than {MAX_ROWS} rows or {MAX_BYTES} bytes")
        found.append((number(len(cursor.description)), row))
    return b"".join(count + row for count, row in found), len(found)


def changed(db, sql, values):
    cursor, before = run(db, sql, values)
    for _ in cursor:
        pass
    cursor.close()
    return db.total_changes - before


def answered(db, function, args):
    if function == DATABASE + "query":
        cursor, _ = run(db, *args.statement())
        columns = [column[0] for column in cursor.description or ()]
        found, count = rows(cursor)
        return number(len(columns)) + b"".join(map(text, columns)) + number(count) + found
    if function == DATABASE + "execute":
        return number(changed(db, *args.statement()))
    if function == DATABASE + "batch":
        each = [changed(db, *statement) for statement in args.list(args.statement)]
        return number(len(each)) + b"".join(map(number, each))
    raise Refused(UNAVAILABLE, f"no such function: {function}")


def whole(path, function, args):
    """One call: one transaction, within its time."""
    db = opened(path)
    ends = time.monotonic() + SECONDS
    db.set_progress_handler(lambda: time.monotonic() > ends, 10_000)
    try:
        # Whoever may write waits here and not in its middle, where two that wait for each other would fail.
        db.execute("BEGIN IMMEDIATE")
        answer = answered(db, function, args)
        db.execute("COMMIT")
        return answer
    except sqlite3.IntegrityError as error:
        rule = getattr(error, "sqlite_errorname", "").removeprefix("SQLITE_CONSTRAINT_")
        raise Refused(CONSTRAINT + RULES.get(rule, b"\4"), str(error)) from error
    except (sqlite3.ProgrammingError, sqlite3.Warning, OverflowError) as error:
        many = "one statement" in str(error)
        raise Refused(INVALID if many else VALUE, str(error)) from error
    except sqlite3.OperationalError as error:
        kinds = {"SQLITE_BUSY": CONFLICT, "SQLITE_INTERRUPT": TIMEOUT, "SQLITE_ERROR": INVALID, "SQLITE_AUTH": DENIED}
        kind = kinds.get(getattr(error, "sqlite_errorname", "SQLITE_ERROR"), UNAVAILABLE)
        raise Refused(kind, str(error)) from error
    finally:
        # What was not committed is undone.
        db.close()


# --- calls ------------------------------------------------------------------------------------------------------------


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
                connection.sendall(frame(OK + whole(state, function, Reader(io.BytesIO(params).read))))
            except Refused as error:
                connection.sendall(frame(REFUSED + error.kind + text(str(error))))
        except (EOFError, ValueError, OSError) as error:
            if not isinstance(error, (BrokenPipeError, ConnectionError)):
                print(f"a call was given up: {error!r}", file=sys.stderr, flush=True)


def main():
    settings = json.loads(sys.stdin.readline())
    # Stdin ends when the platform wants no more of us.
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    sqlite3.register_converter("BOOLEAN", lambda stored: stored == b"1")
    state = os.path.join(settings["data"], "database")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(settings["socket"])
    listener.listen(1024)
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=serve, args=(connection, state), daemon=True).start()


main()
