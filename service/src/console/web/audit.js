// The audit trail.

import { time } from './dom.js';
import { DESTINATION, RECORD, listPage, times } from './list.js';
import { destinationLink, recordLink } from './views.js';

const ACTIONS = ['', 'RECEIVED', 'PROCESSED', 'DROPPED', 'CONFLICT', 'ALERTED', 'DEAD_LETTERED', 'REPLAYED', 'DISCARDED', 'ADMIN'];

export default listPage({
  page: 'audit',
  path: '/audit',
  fields: [{ name: 'action', label: 'Action', kind: ACTIONS }, RECORD, DESTINATION, ...times()],
  caption: 'Facts, in the order of applying',
  columns: () => [
    ['Time (UTC)', (fact) => time(fact.time)],
    ['Action', (fact) => fact.action],
    ['Record', (fact) => recordLink(fact.recordId)],
    ['Destination', (fact) => destinationLink(fact.destinationId)],
    ['Worker or actor', (fact) => fact.actor ?? fact.worker],
    ['Address', (fact) => fact.address],
    ['Reason', (fact) => fact.reason, 'wide'],
  ],
  none: 'No fact matches. Remove a filter; for acts of administrators choose the action ADMIN.',
});
