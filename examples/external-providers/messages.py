#!/usr/bin/python3 -I
"""An external provider of wasmcloud:messaging: queues in SQLite behind wRPC, with nothing but Python's standard library.

Sidereal starts this program, writes its settings as one line of JSON to stdin, and connects to the unix socket that
they name, once for each call. A call (all numbers LEB128): 0x00, instance, function, then frames: the length of a path,
its parts, the length of what follows. Parameters come on the empty path, the answer goes back on it, and a stream that is
pending on the path of its place: a sequence of lists. What components send comes as a call; what they take is the stream
of a subscription, and lasts as long as its connection.
"""

import io
import json
import os
import select
import signal
import socket
import sqlite3
import sys
import threading
import time

CONSUMER = "wasmcloud:messaging/consumer@0.2.0."
SOURCE = "sidereal:broker/source@0.1.0."
MAX_VALUE = 4 << 20
# What one group may have waiting: one that nobody follows any more does not grow for ever.
MAX_WAITING = 100_000
# Between two looks for messages that another process put into the file.
LOOK = 1.0


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


# --- the broker -------------------------------------------------------------------------------------------------------


def matches(pattern, subject):
    wanted, tokens = pattern.split("."), subject.split(".")
    for n, part in enumerate(wanted):
        if part == ">":
            return n < len(tokens)
        if n >= len(tokens) or part not in ("*", tokens[n]):
            return False
    return len(wanted) == len(tokens)


class Broker:
    """Every message is a row for each group that takes it: on disk before it is acknowledged, and gone when it is settled.
    Which of them are being handled is known here alone, and forgotten with this process: then they come again."""

    def __init__(self, path):
        self.db = sqlite3.connect(path, isolation_level="IMMEDIATE", check_same_thread=False)
        self.db.execute("PRAGMA journal_mode = WAL")
        self.db.execute("PRAGMA synchronous = FULL")
        self.change = threading.Condition()
        # Word of a message that is being handled: its row, and whose it is.
        self.handled = {}
        self.words = 0
        # Subject of an answer: where it is waited for.
        self.answers = {}
        self.nonce = f"{os.getpid()}-{time.time_ns()}"
        with self.db:
            self.db.execute("CREATE TABLE IF NOT EXISTS groups (name TEXT PRIMARY KEY, patterns TEXT)")
            self.db.execute(
                "CREATE TABLE IF NOT EXISTS messages (n INTEGER PRIMARY KEY AUTOINCREMENT, grp TEXT, subject TEXT, body BLOB,"
                " reply TEXT, tries INTEGER, due REAL)"
            )
            self.db.execute("CREATE INDEX IF NOT EXISTS by_group ON messages (grp, due)")

    def takers(self, subject):
        rows = self.db.execute("SELECT name, patterns FROM groups").fetchall()
        return [name for name, patterns in rows if any(matches(one, subject) for one in json.loads(patterns))]

    def publish(self, subject, body, reply):
        with self.change:
            answer = self.answers.get(subject)
            if answer is not None:
                answer.append((subject, body, reply))
            takers = self.takers(subject)
            with self.db:
                for group in takers:
                    (waiting,) = self.db.execute("SELECT count(*) FROM messages WHERE grp = ?", (group,)).fetchone()
                    if waiting >= MAX_WAITING:
                        raise Refused(f"the group `{group}` has {waiting} messages waiting")
                    self.db.execute(
                        "INSERT INTO messages (grp, subject, body, reply, tries, due) VALUES (?, ?, ?, ?, 0, ?)",
                        (group, subject, body, reply, time.time()),
                    )
            self.change.notify_all()
            return len(takers)

    def request(self, subject, body, patience):
        with self.change:
            if not self.takers(subject):
                raise Refused("no responders")
            self.words += 1
            inbox = f"_INBOX.{self.nonce}.{self.words}"
            answers = self.answers[inbox] = []
        try:
            self.publish(subject, body, inbox)
            with self.change:
                if not self.change.wait_for(lambda: answers, patience):
                    raise Refused("no answer in time")
                return answers[0]
        finally:
            with self.change:
                del self.answers[inbox]

    def group(self, name, patterns):
        with self.change, self.db:
            self.db.execute("INSERT OR REPLACE INTO groups VALUES (?, ?)", (name, json.dumps(patterns)))

    def next(self, follower):
        """The next message for a follower that has room; None when it has stopped."""
        with self.change:
            while True:
                if follower.stopped:
                    return None
                pause = None
                if follower.handles < follower.most:
                    busy = {n for n, _ in self.handled.values()}
                    rows = self.db.execute(
                        "SELECT n, subject, body, reply, tries, due FROM messages WHERE grp = ? ORDER BY due, n LIMIT ?",
                        (follower.name, len(busy) + 1),
                    )
                    for n, subject, body, reply, tries, due in rows:
                        if n in busy:
                            continue
                        if due <= time.time():
                            self.words += 1
                            word = f"{self.nonce}-{self.words}"
                            self.handled[word] = (n, follower)
                            follower.handles += 1
                            return word, str(n), tries + 1, subject, body, reply
                        pause = due - time.time()
                        break
                # While a deploy changes our settings another process writes into the same file, and tells us nothing.
                self.change.wait(min(LOOK, pause or LOOK))

    def settle(self, word, sql, *values):
        with self.change:
            if word not in self.handled:
                raise Refused("no message that is being handled has this word")
            n, follower = self.handled[word]
            with self.db:
                self.db.execute(sql, (*values, n))
            del self.handled[word]
            follower.handles -= 1
            self.change.notify_all()

    def done(self, word):
        self.settle(word, "DELETE FROM messages WHERE n = ?")

    def again(self, word, pause):
        self.settle(word, "UPDATE messages SET tries = tries + 1, due = ? WHERE n = ?", time.time() + pause)

    def give_back(self, word):
        self.settle(word, "UPDATE messages SET due = ? WHERE n = ?", time.time())

    def gone(self, follower):
        """Whoever handled these is not there any more: they come to somebody else."""
        with self.change:
            follower.stopped = True
            words = [word for word, (_, whose) in self.handled.items() if whose is follower]
        for word in words:
            try:
                self.again(word, 0)
            except Refused:
                pass


class Follower:
    """One connection of a subscription."""

    def __init__(self, broker, connection, name, most):
        self.broker, self.connection, self.name, self.most = broker, connection, name, most
        self.handles = 0
        self.stopped = False

    def watch(self):
        """Whoever sends no more wants no more; what was taken is settled by calls of its own, and the connection stays
        until that is done."""
        poll = select.poll()
        poll.register(self.connection, select.POLLRDHUP)
        poll.poll()
        with self.broker.change:
            self.stopped = True
            self.broker.change.notify_all()
        poll.modify(self.connection, 0)
        poll.poll()

    def run(self):
        watching = threading.Thread(target=self.watch, daemon=True)
        watching.start()
        try:
            while (found := self.broker.next(self)) is not None:
                word, id, tries, subject, body, reply = found
                reply = NONE if reply is None else SOME + text(reply)
                one = text(word) + text(id) + number(tries) + text(subject) + data(body) + reply
                self.connection.sendall(frame(number(1) + one, 0))
            self.connection.sendall(frame(number(0), 0))
            watching.join()
        finally:
            self.broker.gone(self)


# --- calls ------------------------------------------------------------------------------------------------------------


def answer(broker, function, args, call, connection):
    def done(value=b""):
        connection.sendall(frame(OK + value))

    match function.removeprefix(CONSUMER).removeprefix(SOURCE):
        case "publish":
            broker.publish(args.text(), args.data(), args.option(args.text))
            done()
        case "request":
            subject, body, reply = broker.request(args.text(), args.data(), args.number() / 1000)
            done(text(subject) + data(body) + (NONE if reply is None else SOME + text(reply)))
        case "subscribe":
            name, patterns, most = args.text(), args.list(args.text), args.number()
            broker.group(name, patterns)
            follower = Follower(broker, connection, name, most)
            done(PENDING)
            follower.run()
        case "done":
            broker.done(args.text())
            done()
        case "again":
            broker.again(args.text(), args.number() / 1000)
            done()
        case "give-back":
            broker.give_back(args.text())
            done()
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
    state = Broker(os.path.join(settings["data"], "messages.db"))
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(settings["socket"])
    listener.listen(1024)
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=serve, args=(connection, state), daemon=True).start()


main()
