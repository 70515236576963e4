// Submit a job from Node.js and wait for its end: plain NATS and JSON, no library of MuxFlow's.
//
// Uses the `user` credentials of tenant default that `muxflow up` made: an NKey, whose seed lies in a file and signs what
// the server asks to sign. The exit code says whether the job succeeded.
//
//     npm install
//     node submit.mjs [JOB]

import { readFileSync } from "node:fs";
import { homedir } from "node:os";
import { join } from "node:path";

import { connect, nkeyAuthenticator } from "@nats-io/transport-node";

const TENANT = "default";
const JOB = process.argv[2] ?? "from-node";
const SPEC = { command: ["echo", "hello from Node.js"], gpu: { memory_bytes: 2 ** 30 } };
const ENDS = ["finished", "failed", "cancelled", "rejected"];
const SUBJECTS = [
  ...["accepted", ...ENDS].map((verb) => `muxflow.jobs.${verb}.${TENANT}.${JOB}`),
  ...["started", "exited"].map((verb) => `muxflow.runs.${verb}.*.${TENANT}.${JOB}`),
];
const ASK_EVERY_MS = 5000;
const ANSWER_MS = 10_000;

async function main() {
  const stateDir = findStateDir();
  const connection = JSON.parse(readFileSync(join(stateDir, "connection.json"), "utf8"));
  const user = connection.credentials.find((each) => each.role === "user" && each.bound_to === TENANT);
  const bus = await connect({
    servers: connection.server,
    authenticator: nkeyAuthenticator(readSeed(join(stateDir, user.path))),
    inboxPrefix: user.inbox_prefix, // what these credentials may listen on
    maxReconnectAttempts: -1,
  });
  try {
    return await run(bus);
  } finally {
    await bus.close();
  }
}

// Gives how the job ended: "finished", "failed", "cancelled" or "rejected".
async function run(bus) {
  let asking;
  const ended = new Promise((resolve, reject) => {
    const ask = () => endOf(bus).then((state) => state && resolve(state), reject);
    asking = setInterval(ask, ASK_EVERY_MS); // an event is missed while the connection is away
    const take = (error, message) => {
      if (error) return reject(error);
      const verb = message.subject.split(".")[2];
      console.log(`${message.subject}: ${told(message.json())}`);
      if (ENDS.includes(verb)) resolve(verb);
      if (verb === "accepted") ask(); // the same job as before starts nothing: it may have ended long ago
    };
    for (const subject of SUBJECTS) bus.subscribe(subject, { callback: take }); // before it can end
  });
  ended.catch(() => undefined); // it is awaited below, unless the submission fails before
  try {
    const ack = (await request(bus, `muxflow.jobs.submit.${TENANT}.${JOB}`, { spec: SPEC })).json();
    if (ack.error) throw new Error(ack.error.description);
    console.log(`stored as message ${ack.seq} of stream ${ack.stream}: it will not be lost`);
    return await ended;
  } finally {
    clearInterval(asking);
  }
}

// Asks the scheduler; gives nothing while the job has not ended, is not recorded yet, or nobody answers.
async function endOf(bus) {
  let reply;
  try {
    reply = await request(bus, `muxflow.query.scheduler.job.${TENANT}`, { job: JOB });
  } catch {
    return undefined;
  }
  if (reply.headers?.has("Nats-Service-Error-Code")) return undefined;
  return ENDS.find((state) => state === reply.json().record.state);
}

function request(bus, subject, question) {
  return bus.request(subject, JSON.stringify(question), { timeout: ANSWER_MS });
}

// What an event says, without what its subject says and what every event has.
function told(event) {
  const known = ["id", "source", "time_ns", "tenant", "job"];
  return JSON.stringify(Object.fromEntries(Object.entries(event).filter(([key]) => !known.includes(key))));
}

function readSeed(path) {
  return new TextEncoder().encode(readFileSync(path, "utf8").trim());
}

// Where `muxflow up` keeps its state unless told otherwise.
function findStateDir() {
  const { MUXFLOW_STATE_DIR: given, XDG_STATE_HOME: home } = process.env;
  return given || join(home || join(homedir(), ".local", "state"), "muxflow");
}

try {
  const state = await main();
  console.log(`${TENANT}/${JOB}: ${state}`);
  process.exitCode = state === "finished" ? 0 : 1;
} catch (error) {
  const notUp = error.code === "ENOENT" || error.name === "ConnectionError";
  console.error(notUp ? `is \`muxflow up\` running? ${error.message}` : error.message);
  process.exitCode = 1;
}
