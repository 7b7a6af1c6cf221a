// Other content under an id that is taken: both contents side by side.

import { get } from './api.js';
import { button, empty, filters, h, json, problem, say, time } from './dom.js';
import { DESTINATION, RECORD, times } from './list.js';
import { payload, recordLink } from './views.js';

const NAMES = ['time', 'sourceId', 'destinationId', 'type', 'value', 'unit', 'reference', 'attributes'];
const text = (value) => (value === undefined ? '' : typeof value === 'object' ? JSON.stringify(value) : String(value));

function sides(conflict) {
  const kept = conflict.record ?? conflict.deadLetter;
  const { refused } = conflict;
  if (!kept || typeof refused !== 'object' || refused === null) {
    return h('div', { class: 'plots' }, h('div', {}, h('h3', {}, 'Has the id'), kept ? json(kept) : 'not shown: no longer kept, or outside the limit of the key'),
      h('div', {}, h('h3', {}, 'Was refused'), payload(conflict, 'refused')));
  }
  const rows = NAMES.filter((name) => kept[name] !== undefined || refused[name] !== undefined).map((name) => {
    const differs = text(kept[name]) !== text(refused[name]);
    return h('tr', {}, h('th', { scope: 'row' }, name), h('td', {}, text(kept[name])), h('td', {}, text(refused[name])),
      h('td', {}, differs ? h('strong', { class: 'bad' }, 'written otherwise') : 'same'));
  });
  const caption = `Both contents of ${conflict.recordId}`;
  return h('div', { class: 'scroll', role: 'region', tabindex: '0', 'aria-label': `${caption}, ${conflict.id}` }, h('table', {}, h('caption', {}, caption),
    h('thead', {}, h('tr', {}, ['Field', conflict.record ? 'Has the id' : 'Has the id (dead letter)', 'Was refused', ''].map((name) =>
      (name ? h('th', { scope: 'col' }, name) : h('td'))))), h('tbody', {}, rows)));
}

export default {
  async show(main, parameters) {
    main.append(filters('conflicts', [RECORD, DESTINATION, ...times()], parameters));
    const list = h('div');
    const more = button('More', () => next());
    main.append(list, more);
    let cursor;
    const next = async () => {
      try {
        const page = await get('/conflicts', { ...parameters, limit: 20, cursor });
        cursor = page.nextCursor;
        if (page.items.length === 0 && !list.hasChildNodes()) list.append(empty('No conflict matches: no id was sent again with other content.'));
        list.append(...page.items.map((conflict) => h('section', {}, h('h2', {}, conflict.id, ': ', recordLink(conflict.recordId)),
          h('p', {}, 'Sent ', time(conflict.receivedAt), ', refused ', time(conflict.time)), sides(conflict))));
        say(`${list.querySelectorAll('section').length} conflicts are shown.`);
      } catch (error) {
        list.append(problem(error));
        cursor = undefined;
      }
      more.hidden = !cursor;
    };
    await next();
  },
};
