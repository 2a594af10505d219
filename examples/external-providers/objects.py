#!/usr/bin/python3 -I
"""An external provider of wasi:blobstore: files, and SQLite for their names, behind wRPC, with nothing but Python's
standard library.

Sidereal starts this program, writes its settings as one line of JSON to stdin, and connects to the unix socket that
they name, once for each call. A call (all numbers LEB128): 0x00, instance, function, then frames: the length of a path,
its parts, the length of what follows. Parameters come on the empty path, and a stream that is pending on the path of its
place; the answer goes back the same way. A stream is a sequence of lists, and ends with an empty one.
"""

import io
import json
import os
import signal
import socket
import sqlite3
import sys
import threading
import time

STORE = "wrpc:blobstore/blobstore@0.2.0."
MAX_VALUE = 8 << 20
CHUNK = 256 << 10


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


# --- the store --------------------------------------------------------------------------------------------------------


class Store:
    """Files whose names say nothing, and a table of whose each is. A row is written after its file is on disk, and a file
    is removed after its row: whoever has it open reads on."""

    def __init__(self, folder):
        self.folder = folder
        self.path = os.path.join(folder, "objects.db")
        self.files = os.path.join(folder, "files")
        self.local = threading.local()
        self.writing = threading.Lock()
        self.made = 0
        os.makedirs(self.files, exist_ok=True)
        with self.db() as db:
            db.execute("CREATE TABLE IF NOT EXISTS containers (name TEXT PRIMARY KEY, created INTEGER)")
            db.execute(
                "CREATE TABLE IF NOT EXISTS objects (container TEXT, name TEXT, file TEXT, size INTEGER, created INTEGER,"
                " PRIMARY KEY (container, name))"
            )
        kept = {file for (file,) in self.db().execute("SELECT file FROM objects")}
        self.unlink(set(os.listdir(self.files)) - kept)

    def db(self):
        if not hasattr(self.local, "db"):
            self.local.db = sqlite3.connect(self.path, timeout=10, isolation_level="IMMEDIATE")
            # On disk before it is acknowledged, and readers wait for nobody.
            self.local.db.execute("PRAGMA journal_mode = WAL")
            self.local.db.execute("PRAGMA synchronous = FULL")
        return self.local.db

    def place(self, file):
        return os.path.join(self.files, file)

    def unlink(self, files):
        for file in files:
            try:
                os.unlink(self.place(file))
            except FileNotFoundError:
                pass

    def new(self):
        with self.writing:
            self.made += 1
            return f"{time.time_ns()}-{self.made}"

    def created(self, container):
        row = self.db().execute("SELECT created FROM containers WHERE name = ?", (container,)).fetchone()
        return None if row is None else row[0]

    def need(self, container):
        created = self.created(container)
        if created is None:
            raise Refused(f"there is no container `{container}`")
        return created

    def find(self, container, name):
        self.need(container)
        row = self.db().execute(
            "SELECT file, size, created FROM objects WHERE container = ? AND name = ?", (container, name)
        ).fetchone()
        if row is None:
            raise Refused(f"there is no object `{name}`")
        return row

    def create(self, container):
        with self.writing, self.db() as db:
            made = db.execute("INSERT OR IGNORE INTO containers VALUES (?, ?)", (container, int(time.time())))
            if made.rowcount == 0:
                raise Refused(f"the container `{container}` is there already")

    def remove(self, container, names=None, itself=False):
        with self.writing:
            with self.db() as db:
                db.execute("BEGIN IMMEDIATE")
                self.need(container)
                if names is None:
                    gone = db.execute("DELETE FROM objects WHERE container = ? RETURNING file", (container,)).fetchall()
                else:
                    found = (
                        db.execute("DELETE FROM objects WHERE container = ? AND name = ? RETURNING file", (container, name)).fetchall()
                        for name in names
                    )
                    gone = [row for rows in found for row in rows]
                if itself:
                    db.execute("DELETE FROM containers WHERE name = ?", (container,))
            self.unlink(file for (file,) in gone)

    def put(self, container, name, file, size):
        """Puts a file that is on disk in the place of an object."""
        with self.writing:
            with self.db() as db:
                db.execute("BEGIN IMMEDIATE")
                self.need(container)
                old = db.execute("SELECT file FROM objects WHERE container = ? AND name = ?", (container, name)).fetchall()
                db.execute("INSERT OR REPLACE INTO objects VALUES (?, ?, ?, ?, ?)", (container, name, file, size, int(time.time())))
            self.unlink(file for (file,) in old)

    def open(self, container, name):
        while True:
            file, size, _ = self.find(container, name)
            try:
                return open(self.place(file), "rb"), size
            except FileNotFoundError:
                # Replaced in this moment.
                continue

    def write(self, container, name, pieces):
        file = self.new()
        size = 0
        try:
            with open(self.place(file), "wb") as into:
                for piece in pieces:
                    into.write(piece)
                    size += len(piece)
                into.flush()
                os.fsync(into.fileno())
            self.sync()
            self.put(container, name, file, size)
        except BaseException:
            self.unlink([file])
            raise

    def sync(self):
        folder = os.open(self.files, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)

    def copy(self, source, target):
        self.need(target[0])
        stream, _ = self.open(*source)
        with stream:
            self.write(*target, iter(lambda: stream.read(CHUNK), b""))

    def names(self, container):
        self.need(container)
        after = ""
        while True:
            rows = self.db().execute(
                "SELECT name FROM objects WHERE container = ? AND name > ? ORDER BY name LIMIT 1000", (container, after)
            ).fetchall()
            if not rows:
                return
            after = rows[-1][0]
            yield [name for (name,) in rows]


# --- calls ------------------------------------------------------------------------------------------------------------


def pieces(call):
    """The stream that is the second parameter. Where the connection ends before it does, there is no object."""
    waiting = b""
    while True:
        path, piece = call.frame()
        if path != [1]:
            raise ValueError("a part of no parameter")
        waiting += piece
        while waiting:
            stream = io.BytesIO(waiting)
            try:
                chunk = Reader(stream.read).data()
            except EOFError:
                break
            if not chunk:
                return
            waiting = waiting[stream.tell() :]
            yield chunk


def answer(store, function, args, call, connection):
    def done(value=b""):
        connection.sendall(frame(OK + value))

    match function.removeprefix(STORE):
        case "container-exists":
            done(bytes([store.created(args.text()) is not None]))
        case "create-container":
            store.create(args.text())
            done()
        case "get-container-info":
            done(number(store.need(args.text())))
        case "delete-container":
            store.remove(args.text(), itself=True)
            done()
        case "clear-container":
            store.remove(args.text())
            done()
        case "has-object":
            try:
                store.find(args.text(), args.text())
                done(b"\1")
            except Refused:
                done(b"\0")
        case "get-object-info":
            _, size, created = store.find(args.text(), args.text())
            done(number(created) + number(size))
        case "delete-object":
            store.remove(args.text(), [args.text()])
            done()
        case "delete-objects":
            store.remove(args.text(), args.list(args.text))
            done()
        case "copy-object":
            store.copy((args.text(), args.text()), (args.text(), args.text()))
            done()
        case "list-container-objects":
            container, limit, offset = args.text(), args.option(args.number), args.option(args.number)
            store.need(container)
            done(PENDING + PENDING)
            left, skip = (limit if limit is not None else 1 << 63), offset or 0
            for names in store.names(container):
                names, skip = names[skip:], max(0, skip - len(names))
                names = names[:left]
                left -= len(names)
                if names:
                    connection.sendall(frame(number(len(names)) + b"".join(map(text, names)), 0, 0))
            connection.sendall(frame(number(0), 0, 0) + frame(OK, 0, 1))
        case "get-container-data":
            container, name, start, end = args.text(), args.text(), args.number(), args.number()
            stream, size = store.open(container, name)
            with stream:
                if start > end or start >= size:
                    raise Refused(f"the range is not within the {size} bytes of the object")
                left = min(end, size - 1) - start + 1
                stream.seek(start)
                done(PENDING + PENDING)
                while left and (piece := stream.read(min(left, CHUNK))):
                    left -= len(piece)
                    connection.sendall(frame(data(piece), 0, 0))
                whole = OK if left == 0 else REFUSED + text("the file is too short")
                connection.sendall(frame(number(0), 0, 0) + frame(whole, 0, 1))
        case "write-container-data":
            container, name, given = args.text(), args.text(), args.option(args.data)
            store.need(container)
            # Before the first byte is read: whoever writes waits for it.
            done(PENDING)
            try:
                store.write(container, name, pieces(call) if given is None else [given])
            except (Refused, sqlite3.Error, OSError) as error:
                connection.sendall(frame(REFUSED + text(str(error)), 0))
            else:
                connection.sendall(frame(OK, 0))
        case _:
            raise Refused(f"no such function: {function}")


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
            except (Refused, sqlite3.Error) as error:
                connection.sendall(frame(REFUSED + text(str(error))))
        except (EOFError, ValueError, OSError) as error:
            if not isinstance(error, (BrokenPipeError, ConnectionError)):
                print(f"a call was given up: {error!r}", file=sys.stderr, flush=True)


def main():
    settings = json.loads(sys.stdin.readline())
    # Stdin ends when the platform wants no more of us.
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    state = Store(settings["data"])
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(settings["socket"])
    listener.listen(1024)
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=serve, args=(connection, state), daemon=True).start()


main()
