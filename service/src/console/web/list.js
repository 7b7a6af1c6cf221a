// A list of the API, page by page, with filters.

import { get } from './api.js';
import { button, empty, filters, h, problem, say, table } from './dom.js';

const TIMES = [
  { name: 'startTime', label: 'From (UTC)', hint: 'such as 2026-01-31T00:00:00Z' },
  { name: 'endTime', label: 'Before (UTC)', hint: 'such as 2026-02-01T00:00:00Z' },
];

export const DESTINATION = { name: 'destinationId', label: 'Destination' };
export const RECORD = { name: 'recordId', label: 'Record id' };
export const times = () => TIMES;

// Shows the items of a path; more of them by a button. `ask` are parameters beside those of the page.
export async function items(main, { path, parameters, caption, columns, none, limit = 50 }) {
  const place = h('div', { 'aria-busy': 'true' });
  main.append(place);
  let shown = null;
  let cursor;
  const more = button('More', () => next());
  const next = async () => {
    const hadFocus = document.activeElement === more;
    more.disabled = true;
    try {
      const page = await get(path, { ...parameters, limit, cursor });
      cursor = page.nextCursor;
      if (!shown) {
        place.replaceChildren();
        if (page.items.length === 0) {
          place.append(empty(none));
          return;
        }
        shown = table(caption, columns, page.items);
        place.append(shown.element);
      } else {
        shown.add(page.items);
        say(`${page.items.length} more are shown.`);
      }
      more.remove();
      if (cursor) place.append(more);
    } catch (error) {
      if (shown) place.append(problem(error));
      else place.replaceChildren(problem(error, () => next()));
    } finally {
      more.disabled = false;
      if (hadFocus && more.isConnected) more.focus();
      place.removeAttribute('aria-busy');
    }
  };
  await next();
}

// A page that is a form and a list.
export function listPage({ page, title, about, path, fields, query = (parameters) => parameters, caption, columns, none, before }) {
  return {
    title,
    async show(main, parameters, app) {
      if (about) main.append(h('p', {}, about));
      main.append(filters(page, fields, parameters));
      if (before) main.append(...[before(parameters, app)].flat().filter(Boolean));
      await items(main, { path, parameters: query(parameters), caption, columns: columns(app), none });
    },
  };
}
