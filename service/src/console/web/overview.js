// What happens now: rates, backlog, lags, losses, and the last verify.

import { events, get, post } from './api.js';
import { button, confirm, count, done, empty, facts, h, link, problem, time } from './dom.js';
import { bars, lines } from './plot.js';

// Seconds that the plots show.
const KEPT = 120;
// Most sinks whose lags are plotted; the page “Sinks” has all.
const MOST_SINKS = 6;
// Pause between two looks at the leases.
const LEASES_MS = 10_000;

const clock = (at) => new Date(at).toISOString().slice(11, 19);

function verified(verify) {
  if (!verify) return 'never: run millrace verify';
  const result = verify.differences === undefined ? h('span', { class: 'bad' }, 'not everything could be compared')
    : verify.differences === 0 ? h('span', { class: 'good' }, 'no differences')
      : h('span', { class: 'bad' }, `${count(verify.differences)} differences`);
  return h('span', {}, result, `, ${count(verify.records)} records, `, time(verify.endedAt));
}

function tiles(stats) {
  const lost = stats.lost === 0 ? '0' : h('span', { class: 'bad' }, count(stats.lost));
  return facts([
    ['Accepted', count(stats.received)],
    ['Applied', link(count(stats.processed), 'records')],
    ['Duplicates', count(stats.duplicates)],
    ['Conflicts', link(count(stats.conflicts), 'conflicts')],
    ['Dead letters, open', link(count(stats.deadLetters.open), 'dead-letters')],
    ['Alerts', link(count(stats.alerts), 'alerts')],
    ['Backlog', count(stats.backlog)],
    ['Oldest entry', stats.lagMs === undefined ? '–' : `${count(stats.lagMs)} ms`],
    ['Lost', h('span', {}, lost, stats.lossUncertain && h('span', { class: 'bad' }, ' (more can be lost)'))],
    ['Destinations', count(stats.destinations)],
    ['Policy version', link(String(stats.policyVersion), 'policies')],
    ['Last verify', verified(stats.verify)],
  ]);
}

// What a person should look at first.
function troubles(stats, leases) {
  const found = [];
  if (stats.missing) found.push(stats.missing);
  const orphans = leases.filter((lease) => !lease.alive).length;
  if (orphans) found.push(link(`${orphans} shards have no live worker: nothing of theirs is applied.`, 'workers'));
  for (const sink of stats.sinks) {
    for (const { shard, state, detail } of sink.states) found.push(link(`Sink ${sink.name}, shard ${shard}: ${state}: ${detail}`, 'sinks'));
  }
  if (stats.lost) found.push(`${count(stats.lost)} accepted records are lost: ask the clients to send them again.`);
  if (stats.verify?.differences) found.push('The last verify found differences: run millrace verify, which lists them.');
  if (found.length === 0) return h('p', { class: 'good' }, 'No trouble is known.');
  return h('ul', { class: 'problem' }, found.map((one) => h('li', {}, one)));
}

// Uncertain losses, with the act that acknowledges them. It stays while the counts are shown again.
function losses(app) {
  const place = h('div', { class: 'problem' }, h('p', {}, 'More records can be lost than are counted: a process died while Redis lost writes. Ask the clients to send the records of that time again.'));
  const acknowledge = async () => {
    const what = h('p', {}, 'Only once the clients have sent the records of that time again. Records that were not lost are duplicates, and count once.');
    const answers = await confirm('Acknowledge uncertain losses?', what, 'Acknowledge', [{ name: 'reason', label: 'Note for the audit trail' }]);
    if (!answers) return;
    try {
      await post('/losses/acknowledge', answers);
      done(place, 'acknowledged');
    } catch (error) {
      place.append(problem(error));
    }
  };
  if (app.session.mayAct) place.append(button('Acknowledge', acknowledge));
  return place;
}

// The rate of a count between neighbours, per second.
function rates(samples, name) {
  return samples.slice(1).flatMap((sample, index) => {
    const before = samples[index];
    const seconds = (sample.at - before.at) / 1000;
    if (seconds <= 0 || sample.stats[name] === undefined || before.stats[name] === undefined) return [];
    return [[sample.at, Math.max(0, sample.stats[name] - before.stats[name]) / seconds]];
  });
}

function plots(samples) {
  const { stats } = samples.at(-1);
  const series = [['received', 'accepted'], ['processed', 'applied'], ['alerts', 'alerts']]
    .map(([name, title]) => ({ name: title, points: rates(samples, name) }));
  const now = series.map(({ name, points }) => `${name} ${(points.at(-1)?.[1] ?? 0).toFixed(0)}`).join(', ');
  const backlog = stats.shards.filter((shard) => shard.backlog).map((shard) => [`shard ${shard.shard}`, shard.backlog.records]);
  const lags = stats.sinks.slice(0, MOST_SINKS).map(({ name }) => ({ name, points: samples.flatMap(({ at, stats: { sinks } }) => {
    const lag = sinks.find((sink) => sink.name === name)?.lag;
    return lag === undefined ? [] : [[at, lag]];
  }) }));
  const last = lags.map(({ name, points }) => [name, points.at(-1)?.[1]]);
  const words = (values) => values.filter(([, value]) => value).map(([name, value]) => `${name} ${value}`).join(', ') || 'none';
  return h('div', { class: 'plots' },
    lines('Records per second', `Records per second: ${now}`, series, clock),
    bars('Backlog per shard', `Backlog per shard: ${words(backlog)}`, backlog),
    stats.sinks.length ? lines('Lag per sink, in outcomes', `Lag per sink: ${words(last)}`, lags, clock) : empty('No sink: nothing is published. Name sinks in the manifest.'));
}

export default {
  async show(main, parameters, app) {
    const place = h('div', {}, h('p', {}, 'Waiting for the first counts…'));
    const trouble = h('div');
    const uncertain = h('div');
    main.append(trouble, uncertain, place);
    const samples = [];
    let leases = [];
    const look = async () => {
      try {
        leases = (await get('/workers')).leases;
      } catch {
        // The counts come from the same server, and show the problem.
      }
    };
    look();
    const looks = setInterval(look, LEASES_MS);
    let first;
    const ready = new Promise((resolve) => { first = resolve; });
    const source = events({
      stats(stats) {
        const at = Date.parse(stats.asOf);
        if (at !== samples.at(-1)?.at) samples.push({ at, stats });
        if (samples.length > KEPT) samples.shift();
        trouble.replaceChildren();
        if (!stats.lossUncertain) uncertain.replaceChildren();
        else if (!uncertain.hasChildNodes()) uncertain.append(losses(app));
        // A person who is on a link of it stays there.
        if (place.contains(document.activeElement)) {
          place.querySelector('.plots')?.replaceWith(plots(samples));
        } else {
          place.replaceChildren(troubles(stats, leases), tiles(stats),
            stats.processed === 0 && !stats.received ? empty('No record came yet. Send one: POST /records, or millrace send FILE.') : '',
            plots(samples));
        }
        first();
      },
      problem(error) {
        trouble.replaceChildren(problem(error));
        if (samples.length === 0) place.replaceChildren();
        first();
      },
    });
    await ready;
    return () => {
      clearInterval(looks);
      source.stop();
    };
  },
};
