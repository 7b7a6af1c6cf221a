// API keys: list, create, rotate, revoke.

import { post, remove } from './api.js';
import { button, confirm, done, empty, h, problem, say, time } from './dom.js';
import { items } from './list.js';

const again = () => window.dispatchEvent(new HashChangeEvent('hashchange'));
const patterns = (list) => (list.length ? list.map((one) => h('div', {}, 'exact' in one ? one.exact : `${one.prefix}…`)) : 'any');

// The secret of a new key: shown this once.
async function secret(place, ask) {
  try {
    const { key, secret: text } = await ask();
    done(place, h('div', { class: 'empty', role: 'alert' },
      h('p', {}, `The secret of ${key.name} (${key.id}). It is shown only now:`), h('pre', {}, text), button('Done', again)));
  } catch (error) {
    place.replaceChildren(problem(error));
  }
}

async function create(place) {
  const answers = await confirm('Create a key', '', 'Create', [
    { name: 'name', label: 'Name', hint: 'The actor in the audit trail.' },
    { name: 'scope', label: 'Scope', kind: ['read', 'ingest', 'admin'] },
    { name: 'source', label: 'Only this source' },
    { name: 'destination', label: 'Only this destination' },
    { name: 'expiresAt', label: 'Expires (UTC)', hint: 'such as 2027-01-31T00:00:00Z; empty: never' },
  ]);
  if (!answers) return;
  const only = (id) => (id ? [{ exact: id }] : []);
  await secret(place, () => post('/keys', {}, {
    name: answers.name ?? '', scopes: [answers.scope], expiresAt: answers.expiresAt,
    sourceIds: only(answers.source), destinationIds: only(answers.destination),
  }));
}

async function revoke(place, key) {
  const what = h('p', {}, `${key.name} (${key.id}) is refused by every process within two seconds, for good. Its sessions of this console end.`);
  if (!await confirm('Revoke this key?', what, 'Revoke')) return;
  try {
    await remove(`/keys/${encodeURIComponent(key.id)}`);
    done(place, 'revoked');
    say(`${key.name} is revoked.`);
  } catch (error) {
    place.append(problem(error));
  }
}

function actions(key) {
  if (key.revokedAt) return '';
  const place = h('div');
  const rotate = async () => {
    const what = h('p', {}, `${key.name} gets a second secret. Revoke the first one once it is no longer used.`);
    if (await confirm('Make another secret?', what, 'Rotate')) await secret(place, () => post(`/keys/${encodeURIComponent(key.id)}/rotate`));
  };
  place.append(button('Rotate', rotate, { 'aria-label': `Rotate ${key.name}, ${key.id}` }),
    button('Revoke', () => revoke(place, key), { class: 'danger', 'aria-label': `Revoke ${key.name}, ${key.id}` }));
  return place;
}

export default {
  async show(main, parameters, app) {
    if (!app.session.mayAct) {
      main.append(empty('Keys are for administrators. Sign in with a key that has the scope admin.'));
      return;
    }
    const place = h('div');
    main.append(button('Create a key', () => create(place)), place);
    await items(main, {
      path: '/keys', parameters: {}, caption: 'API keys, in the order of their creation',
      none: 'There is no key. Under millrace dev none is needed; elsewhere create one.',
      columns: [
        ['Name', (key) => h('div', {}, h('strong', {}, key.name), ` ${key.id}`)], ['Scopes', (key) => key.scopes.join(', ')],
        ['Sources', (key) => patterns(key.sourceIds)], ['Destinations', (key) => patterns(key.destinationIds)],
        ['State', (key) => (key.revokedAt ? h('span', {}, 'revoked ', time(key.revokedAt)) : h('span', { class: 'good' }, 'active'))],
        ['Expires', (key) => time(key.expiresAt) ?? 'never'],
        ['Last used', (key) => key.secrets.map((one) => h('div', {}, time(one.lastUsedAt) ?? 'never'))],
        ['Actions', actions],
      ],
    });
  },
};
