// The workers, and the leases of the shards.

import { get } from './api.js';
import { count, empty, h, link, table, time } from './dom.js';

const alive = (one, yes, no) => (one.alive ? h('span', { class: 'good' }, yes) : h('span', { class: 'bad' }, no));

export default {
  async show(main) {
    const { workers, leases } = await get('/workers');
    if (workers.length === 0) main.append(empty('No worker was alive within the last day: nothing is applied. Start one: millrace work.'));
    else {
      const owned = (worker) => leases.filter((lease) => lease.worker === worker.name && lease.alive).map((lease) => lease.shard);
      main.append(table('Workers', [
        ['Worker', (worker) => worker.name], ['State', (worker) => alive(worker, 'alive', 'gone')],
        ['Shards', (worker) => owned(worker).join(', ')], ['Started (UTC)', (worker) => time(worker.startedAt)],
        ['Heartbeat holds until', (worker) => time(worker.seenUntil)],
      ], workers).element);
    }
    if (leases.length === 0) main.append(empty('No shard exists yet: the first worker creates them.'));
    else {
      main.append(table('Leases', [
        ['Shard', (lease) => String(lease.shard), 'number'],
        ['Owner', (lease) => lease.worker ?? h('span', { class: 'bad' }, 'none')],
        ['State', (lease) => alive(lease, 'holds', lease.worker ? 'expired' : 'free')],
        ['Until', (lease) => time(lease.until)], ['Taken', (lease) => time(lease.takenAt)],
        ['Epoch', (lease) => count(lease.epoch), 'number'],
        ['Policy', (lease) => link(String(lease.policyVersion), 'policies', { version: String(lease.policyVersion) })],
      ], leases).element);
    }
  },
};
