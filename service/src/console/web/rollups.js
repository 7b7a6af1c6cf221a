// Sums per window and group, as plots.

import { lines as streamed } from './api.js';
import { count, empty, filters, h, table, time } from './dom.js';
import { FIELDS } from './records.js';
import { lines } from './plot.js';
import { day } from './totals.js';

const MOST = 1000;
const GROUPS = [['', 'none'], 'destinationId', 'sourceId', 'reference', 'type', 'unit'];
const DAY_MS = 86_400_000;

// A line per group and unit; at most six.
function seriesOf(rows, groupBy) {
  const series = new Map();
  for (const row of rows) {
    for (const { unit, total } of row.totals) {
      const name = groupBy && groupBy !== 'unit' ? `${row[groupBy]}, ${unit}` : unit;
      if (!series.has(name)) series.set(name, []);
      series.get(name).push([Date.parse(row.windowStart), Number(total)]);
    }
  }
  const all = [...series].map(([name, points]) => ({ name, points }));
  return { series: all.slice(0, 6), rest: all.length - 6 };
}

export default {
  async show(main, parameters) {
    const yesterday = `${new Date(Date.now() - DAY_MS).toISOString().slice(0, 13)}:00:00Z`;
    const asked = { window: '1h', startTime: yesterday, ...parameters };
    main.append(filters('rollups', [
      { name: 'window', label: 'Window', kind: ['1m', '5m', '15m', '1h', '1d'] },
      { name: 'groupBy', label: 'Group by', kind: GROUPS },
      ...FIELDS,
    ], asked));
    const { items, more } = await streamed('/records/rollups', asked, 'row', MOST);
    if (items.length === 0) {
      main.append(empty('No record is in these windows. Records are found by their own time: choose an earlier begin.'));
      return;
    }
    const { series, rest } = seriesOf(items, asked.groupBy);
    main.append(lines(`Sum per window of ${asked.window}, rounded`, `Sums per window of ${asked.window}: ${series.map(({ name }) => name).join(', ')}`, series, day));
    if (rest > 0) main.append(h('p', {}, `${rest} more groups are in the table only.`));
    main.append(table('Sums of each window, exact', [
      ['Begin (UTC)', (row) => time(row.windowStart)],
      ...(asked.groupBy ? [['Group', (row) => row[asked.groupBy]]] : []),
      ['Records', (row) => count(row.count), 'number'],
      ['Sum', (row) => row.totals.map(({ total, unit }) => h('div', {}, `${total} ${unit}`)), 'number'],
    ], items).element);
    if (more) main.append(h('p', {}, `Only the first ${MOST} rows are shown. Choose a longer window or a filter.`));
  },
};
