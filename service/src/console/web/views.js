// Views that several pages share: a record, a payload, an amount.

import { facts, h, json, link, time } from './dom.js';

// An amount with its sign and unit, as the API sends it.
export const amount = (record) => `${record.type === 'negative' ? '−' : ''}${record.value} ${record.unit}`;

export const recordLink = (id) => id && link(id, 'record', { id });
export const destinationLink = (id) => id && link(id, 'totals', { destinationId: id });

export const RECORD_COLUMNS = [
  ['Record', (record) => recordLink(record.recordId)],
  ['Time (UTC)', (record) => time(record.time)],
  ['Destination', (record) => destinationLink(record.destinationId)],
  ['Source', (record) => record.sourceId],
  ['Amount', amount, 'number'],
  ['Reference', (record) => record.reference],
  ['Applied', (record) => time(record.processedAt)],
];

export function recordFacts(record) {
  return facts([
    ['Time', time(record.time)], ['Amount', amount(record)], ['Destination', destinationLink(record.destinationId)],
    ['Source', record.sourceId], ['Reference', record.reference], ['Attributes', record.attributes && json(record.attributes)],
  ]);
}

// What could not be applied, in whichever form the API has it.
export function payload(item, name) {
  const value = item[name] ?? item[`${name}Text`];
  if (value !== undefined) return json(value);
  const bytes = item[`${name}Base64`];
  return bytes === undefined ? '' : h('div', {}, 'bytes, as base64:', json(bytes));
}
