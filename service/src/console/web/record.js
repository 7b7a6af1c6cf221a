// The history of one record across all stages.

import { get } from './api.js';
import { count, empty, filters, h, link, problem, table, time } from './dom.js';
import { recordFacts, recordLink } from './views.js';

function stages(history) {
  const { summary } = history;
  const list = [
    history.receivedAt && ['Accepted', time(history.receivedAt)],
    history.queuedAt && [history.status === 'queued' ? 'Waits in the input stream' : 'In the input stream', `of shard ${history.shard}, since `, time(history.queuedAt)],
    history.processedAt && ['Applied', time(history.processedAt), ` as number ${history.seq} of shard ${history.shard}`,
      summary && `; before it: ${count(summary.previousCount)} records, ${summary.previousTotal} ${summary.unit}`],
    history.reverses && ['Reverses', recordLink(history.reverses)],
    ...(history.reversals?.newest ?? []).map((reversal) => ['Reversed', `by ${reversal.value}, `, recordLink(reversal.recordId), ', ',
      time(reversal.processedAt), `; ${reversal.rest} remains`]),
    history.threshold && ['Alert', `above the threshold ${history.threshold}`],
    ...(history.totalAlerts ?? []).map(({ name, rollup, above, below, previousTotal, total }) =>
      ['Alert of a total', `${name}: ${previousTotal} before it, ${total} with it, ${above ? `above ${above}` : `below ${below}`}${rollup ? ` in ${rollup}` : ''}`]),
    ...history.published.map(({ sink, state }) => ['Sink ', link(sink, 'sinks'), `: ${state.replace('_', ' ')}`]),
    history.duplicates > 0 && ['Sent again', `${count(history.duplicates)} times with the same content: counted once`],
    history.conflicts > 0 && ['Conflicts', link(`${count(history.conflicts)} with other content`, 'conflicts', { recordId: history.recordId })],
    ...history.deadLetters.map((deadLetter) => ['Dead deadLetter', link(deadLetter.id, 'dead-letters', { recordId: history.recordId, state: deadLetter.state }),
      `: ${deadLetter.reason}, ${deadLetter.state}, `, time(deadLetter.closedAt ?? deadLetter.openedAt)]),
  ];
  return h('ol', { class: 'stages' }, list.filter(Boolean).map(([name, ...rest]) => h('li', {}, h('strong', {}, name), ' ', rest)));
}

export default {
  async show(main, parameters) {
    main.append(filters('record', [{ name: 'id', label: 'Record id', required: true }], parameters));
    const { id } = parameters;
    if (!id) {
      main.append(empty('Give the id of a record. It finds applied, waiting, refused and dead-lettered records. Ids are in the lists of ',
        link('records', 'records'), ', ', link('dead letters', 'dead-letters'), ' and ', link('conflicts', 'conflicts'), '.'));
      return;
    }
    let history;
    try {
      history = await get(`/records/${encodeURIComponent(id)}`);
    } catch (error) {
      main.append(problem(error));
      return;
    }
    main.append(h('h2', {}, `${history.recordId}: ${history.status.replace('_', ' ')}`), stages(history));
    if (history.record) main.append(h('h2', {}, 'Content'), recordFacts(history.record));
    const facts = await get('/audit', { recordId: id, limit: 200 });
    main.append(h('h2', {}, 'What happened'));
    if (facts.items.length === 0) main.append(empty('Nothing is in the audit trail yet: the record waits, or is no longer kept.'));
    else {
      main.append(table('Facts of the audit trail', [
        ['Time (UTC)', (fact) => time(fact.time)], ['Action', (fact) => fact.action], ['Record', (fact) => recordLink(fact.recordId)],
        ['Worker or actor', (fact) => fact.actor ?? fact.worker], ['Reason', (fact) => fact.reason, 'wide'],
      ], facts.items).element);
    }
  },
};
