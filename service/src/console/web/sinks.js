// Sinks with their cursors and lags, and deliveries of webhooks that did not succeed.

import { get, post } from './api.js';
import { button, confirm, count, done, empty, filters, h, json, problem, say, table, time } from './dom.js';
import { DESTINATION, items, times } from './list.js';
import { destinationLink } from './views.js';

const again = () => window.dispatchEvent(new HashChangeEvent('hashchange'));
const places = (numbers) => Object.entries(numbers ?? {}).map(([shard, number]) => h('div', {}, `shard ${shard}: ${count(number)}`));

async function resume(place, sink) {
  const halted = sink.stream !== undefined;
  const fields = halted ? [
    { name: 'from', label: 'Start', kind: [['now', 'with what happens from now on'], ['beginning', 'with all that is stored']] },
    { name: 'repeat', label: 'Although the stream still has entries', kind: 'checkbox', hint: 'With all that is stored: readers see ids again.' },
  ] : [];
  const what = halted ? `The position of ${sink.name} is lost. Where does it start?` : `${sink.name} continues at its position.`;
  const answers = await confirm(`Resume ${sink.name}?`, h('p', {}, what), 'Resume', fields);
  if (!answers) return;
  try {
    await post(`/sinks/${encodeURIComponent(sink.name)}/resume`, answers);
    say(`${sink.name} is resumed.`);
    done(place, 'resumed: the workers read it within seconds', button('Show again', again));
  } catch (error) {
    place.append(problem(error));
  }
}

function states(sink, app) {
  if (sink.states.length === 0) return sink.complete ? 'complete' : sink.started ? h('span', { class: 'good' }, 'runs') : 'not started yet';
  const place = h('div');
  place.append(...sink.states.map(({ shard, state, detail }) => h('div', {}, h('strong', { class: 'bad' }, state), ` shard ${shard}: ${detail}`)));
  const stopped = sink.states.some(({ state }) => state === 'halted' || state === 'disabled');
  if (stopped && app.session.mayAct) place.append(button('Resume', () => resume(place, sink), { 'aria-label': `Resume ${sink.name}` }));
  return place;
}

async function sendAgain(place, delivery) {
  try {
    await post(`/deliveries/${encodeURIComponent(delivery.id)}/retry`);
    done(place, 'requested');
    say(`${delivery.id} is sent again within seconds.`);
  } catch (error) {
    place.append(problem(error));
  }
}

function sendMatching(parameters) {
  const place = h('div');
  const onclick = async () => {
    place.replaceChildren();
    try {
      const dry = await post('/deliveries/retry', { ...parameters, dryRun: 'true' });
      const question = h('div', {}, h('p', {}, `${dry.matching} deliveries match.`), json(dry.ids.slice(0, 20).join('\n')));
      if (dry.matching === 0) place.append(h('p', {}, 'No delivery matches: nothing to send.'));
      else if (await confirm('Send these deliveries again?', question, 'Send')) {
        const sent = await post('/deliveries/retry', parameters);
        done(place, h('p', {}, `${count(sent.requested)} deliveries are sent again within seconds.`), button('Show the list again', again));
        say(`${sent.requested} deliveries are sent again.`);
      }
    } catch (error) {
      place.append(problem(error));
    }
  };
  return h('div', {}, button('Send all that match again (dry run first)', onclick), place);
}

const attempts = (delivery) => h('details', {}, h('summary', {}, `${delivery.attempts} attempts of ${delivery.id}`),
  h('ul', {}, delivery.lastAttempts.map(({ at, status, error, latencyMs }) => h('li', {}, time(at), `: ${error ?? status}, ${latencyMs} ms`))));

async function deliveries(main, parameters, app) {
  main.append(h('h2', {}, 'Deliveries that did not succeed'), filters('sinks', [
    { name: 'sink', label: 'Sink' }, DESTINATION, { name: 'state', label: 'State', kind: ['', 'waiting', 'failed'] }, ...times(),
  ], parameters));
  if (app.session.mayAct) main.append(sendMatching(parameters));
  const again = (delivery) => {
    const place = h('div');
    place.append(button('Send again', () => sendAgain(place, delivery), { 'aria-label': `Send ${delivery.id} again` }));
    return place;
  };
  await items(main, {
    path: '/deliveries', parameters, caption: 'Deliveries, by sink, shard and number',
    none: 'No delivery waits or failed: every webhook took what it was sent, or there is none.',
    columns: [
      ['Delivery', (delivery) => delivery.id], ['Destination', (delivery) => destinationLink(delivery.destinationId)],
      ['State', (delivery) => (delivery.requested ? `${delivery.state}, requested` : delivery.state)],
      ['Next or last', (delivery) => time(delivery.nextAttemptAt ?? delivery.failedAt)], ['Attempts', attempts, 'wide'],
      ...(app.session.mayAct ? [['Actions', again]] : []),
    ],
  });
}

export default {
  async show(main, parameters, app) {
    try {
      const { sinks, missing } = await get('/stats');
      if (missing) main.append(h('p', { class: 'problem' }, missing));
      if (sinks.length === 0) main.append(empty('There is no sink: nothing is published. Name sinks in the manifest (spec.sinks).'));
      else {
        main.append(table('Sinks of the manifest', [
          ['Sink', (sink) => sink.name], ['Carries', (sink) => sink.event], ['Goes to', (sink) => sink.stream ?? 'webhook'],
          ['State', (sink) => states(sink, app), 'wide'], ['Cursor', (sink) => h('details', {}, h('summary', {}, `Cursor of ${sink.name}`), places(sink.cursorPerShard))],
          ['Lag', (sink) => h('div', {}, count(sink.lag), places(sink.lagPerShard)), 'number'],
        ], sinks).element);
      }
    } catch (error) {
      main.append(problem(error));
      if (error.status === 403) return;
    }
    await deliveries(main, parameters, app);
  },
};
