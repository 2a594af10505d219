// Hello, for `cargo xtask bench --only languages`: the least that a component of wasi:http in JavaScript is.
import { Fields, OutgoingResponse, OutgoingBody, ResponseOutparam } from 'wasi:http/types@0.2.12';
const text = new TextEncoder().encode('Hello, world!\n');
export const incomingHandler = {
  handle(request, out) {
    const response = new OutgoingResponse(Fields.fromList([['content-length', new TextEncoder().encode('14')]]));
    const body = response.body();
    ResponseOutparam.set(out, { tag: 'ok', val: response });
    const stream = body.write();
    stream.blockingWriteAndFlush(text);
    stream[Symbol.dispose]();
    OutgoingBody.finish(body, undefined);
  },
};
