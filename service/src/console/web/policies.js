// Policy versions, and what changed from one to the next.

import { get } from './api.js';
import { empty, filters, h, json, link, table, time } from './dom.js';

// Each value of a document by its path. Items of a list that have names go by these.
function flat(value, path = '', into = new Map()) {
  if (value === null || typeof value !== 'object') {
    into.set(path, String(value));
  } else if (Array.isArray(value)) {
    if (value.length === 0) into.set(path, '[]');
    value.forEach((item, index) => flat(item, `${path}[${item?.name ?? index}]`, into));
  } else {
    if (Object.keys(value).length === 0) into.set(path, '{}');
    for (const [name, item] of Object.entries(value)) flat(item, path ? `${path}.${name}` : name, into);
  }
  return into;
}

function differences(before, after) {
  const [old, fresh] = [flat(before), flat(after)];
  return [...new Set([...old.keys(), ...fresh.keys()])].sort()
    .filter((path) => old.get(path) !== fresh.get(path))
    .map((path) => ({ path, before: old.get(path), after: fresh.get(path) }));
}

const kind = ({ before, after }) => (before === undefined ? 'added' : after === undefined ? 'removed' : 'changed');

export default {
  async show(main, parameters) {
    const { items, nextCursor } = await get('/policies', { limit: 200 });
    if (items.length === 0) {
      main.append(empty('There is no policy version: no process has registered a manifest yet.'));
      return;
    }
    const versions = items.map((item) => String(item.version));
    const shown = items.find((item) => String(item.version) === parameters.version) ?? items[0];
    const older = items.find((item) => String(item.version) === parameters.with) ?? items.find((item) => item.version < shown.version);
    main.append(filters('policies', [
      { name: 'version', label: 'Version', kind: versions, value: String(shown.version) },
      { name: 'with', label: 'Compared with', kind: [['', 'the one before'], ...versions] },
    ], parameters));
    if (!older) main.append(empty('This is the first version that is kept: there is none to compare it with.'));
    else {
      const found = differences(older.spec, shown.spec);
      main.append(h('h2', {}, `From version ${older.version} to ${shown.version}`));
      if (found.length === 0) main.append(h('p', {}, 'They have the same content.'));
      else {
        main.append(table('Differences', [
          ['Field', ({ path }) => path], ['', kind], ['Before', ({ before }) => before], ['After', ({ after }) => after],
        ].map(([name, ...rest]) => [name || 'Kind', ...rest]), found).element);
      }
    }
    main.append(h('details', {}, h('summary', {}, `The whole version ${shown.version}`), json(shown.spec)),
      table('Versions, the newest first', [
        ['Version', (item) => link(String(item.version), 'policies', { version: String(item.version) })],
        ['Registered (UTC)', (item) => time(item.registeredAt)], ['Generation', (item) => String(item.generation), 'number'], ['Manifest', (item) => item.uid],
      ], items).element);
    if (nextCursor) main.append(h('p', {}, 'Older versions are returned by GET /policies.'));
  },
};
