// Pipelines of the scenarios: real processes of millrace on the servers of hack/with-servers.

import { execFile, spawn } from 'node:child_process';
import fs from 'node:fs';
import http from 'node:http';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import { promisify } from 'node:util';

const run = promisify(execFile);
export const KEY = 'mk_console-tests-0123456789-abcdefghij';
const SIGNING_KEY = 'whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw';

export const pause = (ms) => new Promise((resolve) => { setTimeout(resolve, ms); });

// Waits until `condition` gives something; `seconds` at most.
export async function until(what, condition, seconds = 30) {
  const end = Date.now() + seconds * 1000;
  let last;
  for (;;) {
    try {
      const found = await condition();
      if (found) return found;
      last = found;
    } catch (error) {
      last = error;
    }
    if (Date.now() > end) throw new Error(`waited ${seconds} s for ${what}: ${last}`);
    await pause(100);
  }
}

async function freePort() {
  const server = net.createServer();
  await new Promise((resolve) => { server.listen(0, '127.0.0.1', resolve); });
  const { port } = server.address();
  await new Promise((resolve) => { server.close(resolve); });
  return port;
}

// A way to a server that can be cut.
export class Proxy {
  constructor(url) {
    this.target = new URL(url);
    this.open = true;
    this.sockets = new Set();
    this.server = net.createServer((client) => {
      if (!this.open) {
        client.destroy();
        return;
      }
      const server = net.connect(Number(this.target.port), this.target.hostname);
      for (const [one, other] of [[client, server], [server, client]]) {
        this.sockets.add(one);
        one.on('error', () => {});
        one.on('close', () => {
          this.sockets.delete(one);
          other.destroy();
        });
        one.pipe(other);
      }
    });
  }

  async listen() {
    await new Promise((resolve) => { this.server.listen(0, '127.0.0.1', resolve); });
    const url = new URL(this.target);
    url.port = this.server.address().port;
    return url.href;
  }

  cut() {
    this.open = false;
    for (const socket of this.sockets) socket.destroy();
  }

  heal() {
    this.open = true;
  }
}

// An endpoint of webhooks that refuses the destinations of `refused`.
export class Receiver {
  constructor() {
    this.refused = new Set();
    this.server = http.createServer((request, response) => {
      let body = '';
      request.on('data', (part) => { body += part; });
      request.on('end', () => {
        const destination = JSON.parse(body).data.record?.destinationId;
        response.statusCode = this.refused.has(destination) ? 500 : 204;
        response.end();
      });
    });
  }

  async listen() {
    await new Promise((resolve) => { this.server.listen(0, '127.0.0.1', resolve); });
    return `http://127.0.0.1:${this.server.address().port}/hook`;
  }
}

export class Pipeline {
  constructor(millrace, name, spec, { postgres = process.env.MILLRACE_TEST_POSTGRES_URL } = {}) {
    Object.assign(this, { millrace, name, spec, children: new Map() });
    this.folder = fs.mkdtempSync(path.join(os.tmpdir(), `console-${name}-`));
    this.manifest = path.join(this.folder, 'pipeline.yaml');
    this.write(spec);
    fs.mkdirSync(path.join(this.folder, 'hooks'));
    fs.writeFileSync(path.join(this.folder, 'hooks', 'signing'), SIGNING_KEY);
    this.environment = {
      PATH: process.env.PATH,
      MILLRACE_PIPELINE: this.manifest,
      MILLRACE_REDIS_URL: process.env.MILLRACE_TEST_REDIS_URL,
      MILLRACE_POSTGRES_URL: postgres,
      MILLRACE_BOOTSTRAP_KEY: KEY,
      MILLRACE_WEBHOOK_SECRETS_DIR: this.folder,
      MILLRACE_LEASE_MS: '1500',
    };
  }

  // JSON is YAML, too.
  write(spec) {
    this.spec = spec;
    const document = { apiVersion: 'millrace.dev/v1alpha1', kind: 'RecordPipeline', metadata: { name: this.name }, spec };
    fs.writeFileSync(`${this.manifest}.new`, JSON.stringify(document));
    fs.renameSync(`${this.manifest}.new`, this.manifest);
  }

  // Starts `millrace dev`, with servers of its own.
  async dev() {
    // Root's Postgres runs as another user, who has to reach its folder.
    fs.chmodSync(this.folder, 0o711);
    const data = path.join(this.folder, 'data');
    const log = fs.openSync(path.join(this.folder, 'dev.log'), 'a');
    const words = ['dev', '--pipeline', this.manifest, '--listen', '127.0.0.1:0', '--data-dir', data];
    this.children.set('dev', spawn(this.millrace, words, { env: { PATH: process.env.PATH }, stdio: ['ignore', log, log] }));
    const read = () => fs.readFileSync(path.join(data, 'dev.env'), 'utf8').match(/^MILLRACE_URL='?([^'\n]+)/m)?.[1];
    this.url = await until('millrace dev', read, 120);
    return this;
  }

  async command(...words) {
    return (await run(this.millrace, words, { env: this.environment })).stdout;
  }

  // The kernel kills it when this process ends, for any reason.
  start(role, environment = {}) {
    const log = fs.openSync(path.join(this.folder, `${role}.log`), 'a');
    const child = spawn('setpriv', ['--pdeathsig=KILL', '--', this.millrace, role], { env: { ...this.environment, ...environment }, stdio: ['ignore', log, log] });
    this.children.set(role, child);
  }

  async serve() {
    const [port, health] = [await freePort(), await freePort()];
    this.url = `http://127.0.0.1:${port}`;
    this.start('serve', { MILLRACE_LISTEN: `127.0.0.1:${port}`, MILLRACE_HEALTH_LISTEN: `127.0.0.1:${health}` });
    await until('serve', async () => (await fetch(`${this.url}/ready`)).ok);
  }

  async work() {
    this.start('work', { MILLRACE_HEALTH_LISTEN: `127.0.0.1:${await freePort()}` });
    await until('a worker', async () => (await this.get('/stats')).shards.every((shard) => shard.worker));
  }

  // Starts serve and, unless `idle`, a worker.
  async up() {
    await this.command('migrate');
    await this.serve();
    await this.work();
    return this;
  }

  async end(role) {
    const child = this.children.get(role);
    if (!child || child.exitCode !== null) return;
    const ended = new Promise((resolve) => { child.once('exit', resolve); });
    // It ends its own servers.
    child.kill(role === 'dev' ? 'SIGTERM' : 'SIGKILL');
    await ended;
    this.children.delete(role);
  }

  async close() {
    await Promise.all([...this.children.keys()].map((role) => this.end(role)));
    fs.rmSync(this.folder, { recursive: true, force: true });
  }

  async ask(method, where, body, key = KEY, headers = {}) {
    return fetch(`${this.url}${where}`, {
      method, body: body === undefined ? undefined : JSON.stringify(body),
      headers: { Authorization: `Bearer ${key}`, 'Content-Type': 'application/json', ...headers },
    });
  }

  async get(where) {
    const answer = await this.ask('GET', where);
    if (!answer.ok) throw new Error(`${where}: ${answer.status} ${await answer.text()}`);
    return answer.json();
  }

  // Sends records that may be refused, and waits until they are applied.
  async send(...records) {
    for (const one of records) await this.ask('POST', '/records', one, KEY, { Prefer: 'wait=20' });
  }

  // Changes a row as a fault would.
  async sql(statement) {
    const schema = `millrace_${this.name.replaceAll('-', '_')}`;
    await run('psql', [process.env.MILLRACE_TEST_POSTGRES_URL, '--quiet', '--set', 'ON_ERROR_STOP=1', '--command', `set search_path = ${schema}; ${statement}`]);
  }

  async key(wishes) {
    const answer = await (await this.ask('POST', '/keys', wishes)).json();
    await until('the key', async () => (await this.ask('GET', '/records', undefined, answer.secret)).status !== 401);
    return { id: answer.key.id, secret: answer.secret };
  }
}

export function record(recordId, destinationId, value = '1.00', rest = {}) {
  return {
    recordId, destinationId, value, time: new Date(Date.now() - 60_000).toISOString(), sourceId: 'shop-1', type: 'positive',
    unit: 'EUR', reference: 'order-1', ...rest,
  };
}

const redisStream = (name, event) => ({ name, event, redisStream: {} });

export async function dev(millrace) {
  return new Pipeline(millrace, `console-dev-${process.pid}`, { shards: 1 }).dev();
}

export async function empty(millrace) {
  return new Pipeline(millrace, `console-empty-${process.pid}`, { shards: 2 }).up();
}

// A pipeline with each kind of row, and a load that continues.
export async function busy(millrace) {
  const receiver = new Receiver();
  const url = await receiver.listen();
  const webhook = { url, secretRef: { name: 'hooks', key: 'signing' }, allowedCidrs: ['127.0.0.0/8'] };
  const spec = {
    shards: 4, threshold: '1000', policy: { minimumTotal: '0' },
    sinks: [redisStream('notifications', 'Processed'), redisStream('alerts', 'Alert'), { name: 'billing', event: 'Processed', webhook }],
  };
  const pipeline = await new Pipeline(millrace, `console-busy-${process.pid}`, { ...spec, shards: 4 }).up();
  pipeline.receiver = receiver;
  receiver.refused.add('refused-1');
  await pipeline.send(
    record('big-1', 'account-big', '999999999999999.123456789'), record('big-2', 'account-big', '999999999999999.123456789'),
    record('day-1', 'account-1', '10.50', { time: '2026-01-30T10:00:00Z' }), record('day-2', 'account-1', '2.25', { time: '2026-01-31T10:00:00Z' }),
    record('alert-1', 'account-1', '1000.01'), record('twice-1', 'account-1', '5.00'), record('twice-1', 'account-1', '5.00'),
    record('clash-1', 'account-1', '7.00'), record('clash-1', 'account-1', '12345678901234.123456789'),
    record('hook-1', 'refused-1', '3.00'), record('hostile-1', '<img src=x onerror=alert(1)>', '1.00', { reference: '<script>alert(1)</script>' }),
  );
  await pipeline.send(...[1, 2, 3].map((n) => record(`minus-${n}`, 'account-minus', '5.00', { type: 'negative' })));
  pipeline.write({ ...spec, threshold: '900' });
  await until('the second policy version', async () => (await pipeline.get('/policies')).items.length === 2);
  await until('a delivery that waits', async () => (await pipeline.get('/deliveries')).items.length > 0);
  let n = 0;
  const load = async () => {
    n += 1;
    const batch = Array.from({ length: 20 }, (_, index) => record(`load-${n}-${index}`, `account-${index % 10}`, `${index}.10`));
    await pipeline.ask('POST', '/records/batch', batch).catch(() => {});
  };
  pipeline.load = setInterval(load, 200);
  return pipeline;
}

// A pipeline whose worker died with records waiting, and whose sink has lost its cursor.
export async function broken(millrace) {
  const proxy = new Proxy(process.env.MILLRACE_TEST_POSTGRES_URL);
  const spec = { shards: 2, sinks: [redisStream('notifications', 'Processed')] };
  const pipeline = await new Pipeline(millrace, `console-broken-${process.pid}`, spec, { postgres: await proxy.listen() }).up();
  pipeline.proxy = proxy;
  await pipeline.send(record('old-1', 'account-1'), record('old-2', 'account-2'));
  await until('the sink', async () => (await pipeline.get('/stats')).sinks[0].lag === 0);
  const { port } = new URL(process.env.MILLRACE_TEST_REDIS_URL);
  await run('redis-cli', ['-p', port, 'DEL', `{${pipeline.name}.notifications}:cursor`]);
  await pipeline.send(record('old-3', 'account-1'), record('old-4', 'account-2'));
  await until('the halt', async () => (await pipeline.get('/stats')).sinks[0].states.some(({ state }) => state === 'halted'));
  await pipeline.end('work');
  await pipeline.ask('POST', '/records/batch', [record('waits-1', 'account-1'), record('waits-2', 'account-2')]);
  await until('the lease to expire', async () => (await pipeline.get('/workers')).leases.every((lease) => !lease.alive));
  return pipeline;
}
