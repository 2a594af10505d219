#!/usr/bin/python3 -I
"""An external provider of wasi:keyvalue: SQLite behind wRPC, with nothing but Python's standard library.

Sidereal starts this program, writes its settings as one line of JSON to stdin, and connects to the unix socket that
they name, once for each call. A call (all numbers LEB128):

    0x00  instance  function  0x00  length parameters        text: length, UTF-8
and its answer, in any number of frames:
    0x00  length  bytes

Values are those of the component model: result = 0 ok | 1 error, option = 0 | 1 value, list = count, items.
"""

import json
import os
import re
import signal
import socket
import sqlite3
import sys
import threading

STORE, ATOMICS, BATCH = (f"wrpc:keyvalue/{name}@0.2.0-draft" for name in ("store", "atomics", "batch"))
PAGE = 1000
MAX_PARAMS = 20 << 20
LARGEST = (1 << 63) - 1


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


OK, DONE, NONE, SOME = b"\0", b"\0", b"\0", b"\1"


class Refused(Exception):
    """Answered as error `other(text)`."""


class Reader:
    """Values from a connection, or from the parameters of a call."""

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


# --- the store --------------------------------------------------------------------------------------------------------


class Store:
    """One connection to the database for every thread; SQLite orders the writers."""

    def __init__(self, path):
        self.path = path
        self.local = threading.local()
        self.writing = threading.Lock()
        with self.db() as db:
            db.execute("CREATE TABLE IF NOT EXISTS pairs (n INTEGER PRIMARY KEY, bucket TEXT, key TEXT, value BLOB, UNIQUE (bucket, key))")

    def db(self):
        if not hasattr(self.local, "db"):
            self.local.db = sqlite3.connect(self.path, timeout=5, isolation_level="IMMEDIATE")
            # On disk before it is acknowledged, and readers wait for nobody.
            self.local.db.execute("PRAGMA journal_mode = WAL")
            self.local.db.execute("PRAGMA synchronous = FULL")
        return self.local.db

    def get(self, bucket, key):
        row = self.db().execute("SELECT value FROM pairs WHERE bucket = ? AND key = ?", (bucket, key)).fetchone()
        return None if row is None else bytes(row[0])

    def set(self, bucket, pairs):
        rows = [(bucket, key, value) for key, value in pairs]
        with self.writing, self.db() as db:
            db.executemany("INSERT INTO pairs (bucket, key, value) VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET value = excluded.value", rows)

    def delete(self, bucket, keys):
        with self.writing, self.db() as db:
            db.executemany("DELETE FROM pairs WHERE bucket = ? AND key = ?", [(bucket, key) for key in keys])

    def keys(self, bucket, after):
        rows = self.db().execute(
            "SELECT n, key FROM pairs WHERE bucket = ? AND n > ? ORDER BY n LIMIT ?", (bucket, after, PAGE + 1)
        ).fetchall()
        page = rows[:PAGE]
        return [key for _, key in page], page[-1][0] if len(rows) > PAGE else None

    def increment(self, bucket, key, delta):
        with self.writing, self.db() as db:
            db.execute("BEGIN IMMEDIATE")
            value = self.get(bucket, key)
            value = b"0" if value is None else value
            # One spelling for each number, as every provider has it.
            if not re.fullmatch(rb"0|-?[1-9][0-9]{0,18}", value) or not -LARGEST - 1 <= int(value) <= LARGEST:
                raise Refused(f"the value of `{key}` is not an integer that can be incremented")
            total = int(value) + delta
            if delta > LARGEST or not 0 <= total <= LARGEST:
                raise Refused(f"the value of `{key}` cannot be incremented by {delta}")
            db.execute("INSERT INTO pairs (bucket, key, value) VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET value = excluded.value", (bucket, key, str(total).encode()))
            return total

    def exists(self, bucket, key):
        return self.get(bucket, key) is not None


# --- calls ------------------------------------------------------------------------------------------------------------


def answer(store, instance, function, args):
    """The pieces of the answer to a call: a large one is never in memory as a whole."""
    bucket = args.text()
    match instance, function:
        case (interface, "get") if interface == STORE:
            value = store.get(bucket, args.text())
            yield OK + (NONE if value is None else SOME + data(value))
        case (interface, "set") if interface == STORE:
            store.set(bucket, [(args.text(), args.data())])
            yield DONE
        case (interface, "delete") if interface == STORE:
            store.delete(bucket, [args.text()])
            yield DONE
        case (interface, "exists") if interface == STORE:
            yield OK + bytes([store.exists(bucket, args.text())])
        case (interface, "list-keys") if interface == STORE:
            keys, cursor = store.keys(bucket, args.option(args.number) or 0)
            yield OK + number(len(keys)) + b"".join(map(text, keys))
            yield NONE if cursor is None else SOME + number(cursor)
        case (interface, "increment") if interface == ATOMICS:
            yield OK + number(store.increment(bucket, args.text(), args.number()))
        case (interface, "get-many") if interface == BATCH:
            keys = args.list(args.text)
            yield OK + number(len(keys))
            for key in keys:
                value = store.get(bucket, key)
                yield NONE if value is None else SOME + text(key) + data(value)
        case (interface, "set-many") if interface == BATCH:
            store.set(bucket, args.list(lambda: (args.text(), args.data())))
            yield DONE
        case (interface, "delete-many") if interface == BATCH:
            store.delete(bucket, args.list(args.text))
            yield DONE
        case _:
            raise Refused(f"no such function: {instance}.{function}")


def serve(connection, store):
    """One call, which is one connection."""
    with connection, connection.makefile("rb") as stream:
        try:
            call = Reader(stream.read)
            if call.bytes(1) != b"\0":
                return
            instance, function = call.text(), call.text()
            if call.number() != 0:
                return
            params = memoryview(call.data())
            at = 0

            def read(count):
                nonlocal at
                piece = bytes(params[at : at + count])
                at += len(piece)
                return piece

            try:
                for piece in answer(store, instance, function, Reader(read)):
                    connection.sendall(b"\0" + data(piece))
            except (Refused, sqlite3.Error) as error:
                connection.sendall(b"\0" + data(b"\1\2" + text(str(error))))
        except (EOFError, ValueError, OSError) as error:
            if not isinstance(error, BrokenPipeError):
                print(f"a call was given up: {error!r}", file=sys.stderr, flush=True)


def main():
    settings = json.loads(sys.stdin.readline())
    # Stdin ends when the platform wants no more of us.
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    # What an app hands over is the app's word: a name, never a path.
    name = settings["config"].get("database", "keys")
    if not re.fullmatch(r"[a-z0-9-]{1,40}", name):
        sys.exit("`database` is a name: a-z, 0-9 and hyphens")
    path = os.path.join(settings["data"], f"{name}.db")
    store = Store(path)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(settings["socket"])
    listener.listen(1024)
    print(f"keys are in {path}", flush=True)
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=serve, args=(connection, store), daemon=True).start()


main()
