// A client in JavaScript, written from PROTOCOL.md alone: `node client.js ENDPOINT` ends with 0 if all of it holds.

import assert from "node:assert/strict";
import { decode, encode } from "@msgpack/msgpack";
import { Dealer, Request } from "zeromq";

const endpoint = process.argv[2];
const pack = (fields) => encode({ v: 1, ...fields }, { useBigInt64: true });
const unpack = (frame) => decode(frame, { useBigInt64: true });

const socket = new Dealer({ linger: 0, maxMessageSize: 16 * 1024 * 1024, receiveTimeout: 20_000 });
socket.connect(endpoint);
let lastId = 0;

async function send(fields) {
  lastId += 1;
  await socket.send(pack({ id: lastId, ...fields }));
  return lastId;
}

async function receive() {
  const frames = await socket.receive();
  assert.equal(frames.length, 1);
  return unpack(frames[0]);
}

async function ask(fields) {
  const id = await send(fields);
  const reply = await receive();
  assert.equal(Number(reply.id), id);
  assert.equal(reply.seq, 0);
  return reply;
}

const hello = await ask({ type: "hello", client: "node" });
assert.equal(hello.type, "result");
assert.equal(hello.of, "hello");
assert.equal(hello.protocol, "1.0");
assert.ok(hello.limits.open >= 1 && hello.engines.length && hello.parameters.some((p) => p.name === "seed"));

const ping = await ask({ type: "ping" });
assert.equal(ping.server_id, hello.server_id);

const loaded = await ask({ type: "load", model: "demo" });
assert.equal(loaded.of, "load");
assert.equal(typeof loaded.context, "number");

// A stream: pieces with seq 0, 1, 2, ..., then the result with all of the text.
const settings = { type: "generate", prompt: "Shall I compare thee", max_new_tokens: 20, temperature: 1 };
const id = await send({ ...settings, stream: true, seed: 2n ** 53n + 1n });
let text = "";
for (let seq = 0; ; seq += 1) {
  const reply = await receive();
  assert.equal(Number(reply.id), id);
  assert.equal(reply.seq, seq);
  if (reply.type === "result") {
    assert.equal(reply.text, text);
    assert.equal(reply.settings.seed, 2n ** 53n + 1n);
    assert.ok(["eos", "length"].includes(reply.finish_reason));
    break;
  }
  assert.equal(reply.type, "tokens");
  text += reply.text;
}

// Two at once, of which one is cancelled: it gets its own last reply.
const long = await send({ ...settings, max_new_tokens: 1000, ignore_eos: true, stream: true });
assert.equal((await receive()).type, "tokens");
const cancel = await send({ type: "cancel", target: long });
const ends = new Map();
while (ends.size < 2) {
  const reply = await receive();
  if (reply.type === "result") ends.set(Number(reply.id), reply);
}
assert.equal(ends.get(cancel).found, true);
assert.equal(ends.get(long).finish_reason, "cancelled");

// Values and errors.
assert.equal((await ask({ ...settings, seed: 5.5 })).code, "bad_request");
assert.equal((await ask({ ...settings, model: "nobody-knows-it" })).code, "not_loaded");
assert.equal((await ask({ type: "load", model: "nobody-knows-it" })).code, "unknown_model");
assert.equal((await ask({ type: "ping", v: 2 })).code, "version_mismatch");
assert.equal((await ask({ ...settings, model: null, seed: null, unknown: [1] })).type, "result");

// Tokens and their places in the text.
const words = "Sh\u00e4ll I?";
const tokenized = await ask({ type: "tokenize", text: words });
assert.equal(tokenized.offsets.length, tokenized.ids.length + 1);
assert.equal(tokenized.offsets.at(-1), Buffer.byteLength(words));
const scored = await ask({ type: "score", ids: tokenized.ids, bos: "never" });
assert.equal(scored.logprobs[0], null);
assert.ok(scored.logprobs.slice(1).every((p) => p < 0) && scored.perplexity > 1);

// A REQ socket: one reply to a request, and no stream.
const simple = new Request({ linger: 0, receiveTimeout: 20_000 });
simple.connect(endpoint);
await simple.send(pack({ id: 1, ...settings }));
assert.equal(unpack((await simple.receive())[0]).type, "result");
await simple.send(pack({ id: 2, ...settings, stream: true }));
assert.equal(unpack((await simple.receive())[0]).code, "bad_request");
simple.close();

// A frame that is too large ends the connection, which the socket makes again by itself.
const ended = new Promise((resolve) => socket.events.on("disconnect", resolve));
await send({ ...settings, prompt: "x".repeat(262_145) });
await ended;
assert.equal((await ask({ type: "ping" })).server_id, hello.server_id);
socket.close();
console.log("all of it holds");
