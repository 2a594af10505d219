"""Hello, for `cargo xtask bench --only languages`: the least that a component of wasi:http in Python is."""

from wit_world import exports
from wit_world.imports.types import (Fields, IncomingRequest, ResponseOutparam, OutgoingResponse, OutgoingBody)
from componentize_py_types import Ok

class IncomingHandler(exports.IncomingHandler):
    def handle(self, request: IncomingRequest, response_out: ResponseOutparam):
        response = OutgoingResponse(Fields.from_list([("content-length", b"14")]))
        body = response.body()
        ResponseOutparam.set(response_out, Ok(response))
        with body.write() as stream:
            stream.blocking_write_and_flush(b"Hello, world!\n")
        OutgoingBody.finish(body, None)
