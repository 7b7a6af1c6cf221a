// Applied records, with filters.

import { DESTINATION, RECORD, listPage, times } from './list.js';
import { RECORD_COLUMNS } from './views.js';

export const FIELDS = [
  RECORD, DESTINATION,
  { name: 'sourceId', label: 'Source' },
  { name: 'reference', label: 'Reference' },
  { name: 'unit', label: 'Unit' },
  { name: 'type', label: 'Type', kind: ['', 'positive', 'negative'] },
  ...times(),
];

export default listPage({
  page: 'records',
  path: '/records',
  fields: [...FIELDS, { name: 'alerted', label: 'Alert', kind: [['', 'any'], ['true', 'raised one'], ['false', 'raised none']] }],
  caption: 'Records, by shard and number',
  columns: () => RECORD_COLUMNS,
  none: 'No record matches. Remove a filter, or send one: POST /records. A record that waits is found by its id on the page “One record”.',
});
