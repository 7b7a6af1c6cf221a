// Totals per destination, and the course of one.

import { lines as streamed } from './api.js';
import { count, empty, filters, h, table, time } from './dom.js';
import { DESTINATION } from './list.js';
import { lines } from './plot.js';
import { destinationLink } from './views.js';

// Most destinations, and most windows of a course.
const MOST = 200;
const MOST_WINDOWS = 1000;

const FIELDS = [
  DESTINATION,
  { name: 'reference', label: 'Reference' },
  { name: 'unit', label: 'Unit' },
  { name: 'window', label: 'Course by', kind: ['1d', '1h', '15m', '5m', '1m'] },
];

// The sum of all windows up to each, rounded, per unit.
export function course(rows) {
  const series = new Map();
  for (const row of rows) {
    for (const { unit, total } of row.totals) {
      const points = series.get(unit) ?? [];
      points.push([Date.parse(row.windowStart), (points.at(-1)?.[1] ?? 0) + Number(total)]);
      series.set(unit, points);
    }
  }
  return [...series].slice(0, 6).map(([name, points]) => ({ name, points }));
}

export const day = (at) => new Date(at).toISOString().slice(0, 16).replace('T', ' ');

async function courseOf(main, { window = '1d', ...filter }) {
  const { items, more } = await streamed('/records/rollups', { ...filter, window }, 'row', MOST_WINDOWS);
  if (items.length === 0) return;
  const series = course(items);
  main.append(h('h2', {}, 'Course'),
    lines(`Total up to each window of ${window}, rounded`, `Course of the totals of ${filter.destinationId}: ${series.map(({ name }) => name).join(', ')}`, series, day),
    table('Sums of each window, exact', [
      ['Begin (UTC)', (row) => time(row.windowStart)], ['Records', (row) => count(row.count), 'number'],
      ['Sum', (row) => row.totals.map(({ total, unit }) => h('div', {}, `${total} ${unit}`)), 'number'],
    ], items).element);
  if (more) main.append(h('p', {}, `Only the first ${MOST_WINDOWS} windows are shown. Choose a longer window.`));
}

export default {
  async show(main, parameters) {
    main.append(filters('totals', FIELDS, parameters));
    const { window, ...filter } = parameters;
    const { items, more } = await streamed('/records/aggregations', { ...filter, records: 'false' }, 'group', MOST);
    if (items.length === 0) {
      main.append(empty('No destination matches. Ids compare as a whole: remove a filter, or send records first.'));
      return;
    }
    main.append(table('Totals', [
      ['Destination', (group) => destinationLink(group.destinationId)], ['Records', (group) => count(group.count), 'number'],
      ['Total', (group) => group.totals.map(({ total, unit }) => h('div', {}, `${total} ${unit}`)), 'number'],
    ], items).element);
    if (more) main.append(h('p', {}, `Only the first ${MOST} destinations are shown. Give the id of another.`));
    if (filter.destinationId) await courseOf(main, { ...filter, window });
    else main.append(h('p', {}, 'Choose a destination to see its course.'));
  },
};
