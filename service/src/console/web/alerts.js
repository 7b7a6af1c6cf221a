// Records above their threshold.

import { listPage } from './list.js';
import { FIELDS } from './records.js';
import { RECORD_COLUMNS } from './views.js';

export default listPage({
  page: 'alerts',
  path: '/records',
  fields: FIELDS,
  query: (parameters) => ({ ...parameters, alerted: 'true' }),
  caption: 'Records that raised an alert, by shard and number',
  columns: () => RECORD_COLUMNS,
  none: 'No alert matches. A record raises one when its value is above the threshold of its unit: see the page “Policies”.',
});
