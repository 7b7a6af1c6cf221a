// BullMQ's part of `hack/peers/run`: jobs that do nothing, first added and then processed, then both together.
// bench.mjs REDIS_URL JOBS SECONDS; prints one line of JSON. bench.mjs REDIS_URL: adds jobs until it is ended.
import { fork } from 'node:child_process';
import { Queue, Worker } from 'bullmq';

const [url, jobs, seconds] = [process.argv[2], Number(process.argv[3]), Number(process.argv[4])];
const { hostname: host, port } = new URL(url);
const connection = { host, port: Number(port), maxRetriesPerRequest: null };
const BATCH = 500; // jobs of a call, as records of a request
const MOST = 20_000; // jobs that wait at most while both run
const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

const queue = new Queue('nothing', { connection });
async function add() {
  const job = (_, n) => ({ name: 'nothing', data: { n }, opts: { removeOnComplete: true } });
  await queue.addBulk(Array.from({ length: BATCH }, job));
}
if (process.argv.length === 3) {
  for (;;) {
    if ((await queue.getWaitingCount()) < MOST) await add();
    else await sleep(10);
  }
}

let processed = 0;
let began = performance.now();
const rate = (n) => (n / (performance.now() - began)) * 1000;
const figures = {};

for (let added = 0; added < jobs; added += BATCH) await add();
figures.accepted_per_second = rate(jobs);
began = performance.now();
const worker = new Worker('nothing', async () => {}, { connection, concurrency: 100 });
worker.on('completed', () => { processed += 1; });
worker.on('error', (error) => { throw error; });
while (processed < jobs) await sleep(2);
figures.preloaded_per_second = rate(processed);

// Of its own process, or it would take the time of the only thread from the worker.
const adding = fork(process.argv[1], [url]);
adding.on('exit', () => { throw new Error('the process that adds ended'); });
while (processed === jobs) await sleep(2);
const before = processed;
began = performance.now();
await sleep(seconds * 1000);
figures.together_per_second = rate(processed - before);
adding.removeAllListeners('exit');
adding.kill();
console.log(JSON.stringify(figures));
process.exit(0);
