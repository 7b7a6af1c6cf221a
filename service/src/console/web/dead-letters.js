// Records that could not be applied: look, replay, discard.

import { post } from './api.js';
import { button, confirm, done, h, json, problem, say, time } from './dom.js';
import { DESTINATION, RECORD, listPage, times } from './list.js';
import { destinationLink, payload, recordLink } from './views.js';

const REASONS = ['', 'below_minimum_total', 'total_out_of_bounds', 'malformed', 'wrong_shard', 'refused_by_store', 'panicked', 'crashed_worker', 'corrupted'];
const again = () => window.dispatchEvent(new HashChangeEvent('hashchange'));

// Replays or discards one, after a question.
async function act(place, deadLetter, action) {
  const what = action === 'replay'
    ? `${deadLetter.id} is appended to the input stream again, and decided by the policy that is active now.`
    : `${deadLetter.id} is closed for good: its record is never counted. Its id stays taken.`;
  const title = action === 'replay' ? 'Replay this dead deadLetter?' : 'Discard this dead deadLetter?';
  if (!await confirm(title, h('p', {}, what), action === 'replay' ? 'Replay' : 'Discard')) return;
  try {
    await post(`/dead-letters/${encodeURIComponent(deadLetter.id)}/${action}`);
    done(place, action === 'replay' ? 'replay requested' : 'discarded');
    say(`${deadLetter.id}: ${place.textContent}.`);
  } catch (error) {
    place.append(problem(error));
  }
}

function actions(deadLetter) {
  if (deadLetter.state !== 'open') return deadLetter.closedBy ?? '';
  const place = h('div');
  place.append(button('Replay', () => act(place, deadLetter, 'replay'), { 'aria-label': `Replay ${deadLetter.id}` }),
    button('Discard', () => act(place, deadLetter, 'discard'), { class: 'danger', 'aria-label': `Discard ${deadLetter.id}` }));
  return place;
}

// Replays all that match: first without doing it, then after a question.
function replayMatching(parameters, app) {
  if (!app.session.mayAct) return h('p', {}, 'To replay or discard, sign in with a key that has the scope admin.');
  const { state, ...filter } = parameters;
  const place = h('div');
  const onclick = async () => {
    place.replaceChildren();
    try {
      const dry = await post('/dead-letters/replay', { ...filter, dryRun: 'true' });
      if (dry.matching === 0) {
        place.append(h('p', {}, 'No open dead deadLetter matches: nothing to replay.'));
        return;
      }
      const rest = dry.matching > dry.ids.length ? `, of which this request replays ${dry.ids.length}` : '';
      const question = h('div', {}, h('p', {}, `${dry.matching} open dead letters match${rest}.`), json(dry.ids.slice(0, 20).join('\n')));
      if (!await confirm('Replay these dead letters?', question, 'Replay')) return;
      const replayed = await post('/dead-letters/replay', filter);
      say(`${replayed.queued} dead letters are replayed${replayed.unreadable ? `, ${replayed.unreadable} cannot be read` : ''}.`);
      done(place, h('p', {}, `${replayed.queued} dead letters are replayed.`), button('Show the list again', again));
    } catch (error) {
      place.append(problem(error));
    }
  };
  return h('div', {}, button('Replay all that match (dry run first)', onclick), place);
}

export default listPage({
  page: 'dead-letters',
  path: '/dead-letters',
  fields: [
    { name: 'state', label: 'State', kind: [['', 'open'], 'replayed', 'discarded', ['all', 'all']] },
    { name: 'reason', label: 'Reason', kind: REASONS },
    RECORD, DESTINATION, ...times(),
  ],
  query: ({ state, ...parameters }) => ({ ...parameters, state: state === 'all' ? undefined : (state || 'open') }),
  before: replayMatching,
  caption: 'Dead letters, by shard and number',
  columns: (app) => [
    ['Id', (deadLetter) => deadLetter.id],
    ['Reason', (deadLetter) => h('div', {}, h('strong', {}, deadLetter.reason), h('div', {}, deadLetter.detail)), 'wide'],
    ['Record', (deadLetter) => recordLink(deadLetter.recordId)],
    ['Destination', (deadLetter) => destinationLink(deadLetter.destinationId)],
    ['State', (deadLetter) => h('div', {}, deadLetter.state, ' ', time(deadLetter.closedAt ?? deadLetter.openedAt))],
    ['Content', (deadLetter) => h('details', {}, h('summary', {}, `Show ${deadLetter.id}`), payload(deadLetter, 'payload'))],
    ...(app.session.mayAct ? [['Actions', actions]] : []),
  ],
  none: 'No dead deadLetter matches. Every record that came could be applied, or the others were replayed or discarded: choose another state.',
});
