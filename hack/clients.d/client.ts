// Sends, waits, reads pages and totals by the client that openapi-generator makes for TypeScript.
import assert from 'node:assert/strict';
import { Configuration, RecordsApi, ResponseError, SumsApi, type RecordInput } from 'millrace-client';

const TOTAL = '12345678901234567.89';
const LARGEST = '999999999999999';
const REST = '345678901234579.89'; // The total without twelve of the largest.

function record(number: number, value: string): RecordInput {
  return {
    recordId: `typescript-${number}`,
    time: new Date(Date.UTC(2026, 0, 31, 12, 0, number)),
    sourceId: 'shop-7',
    destinationId: 'typescript',
    type: 'positive',
    value,
    unit: 'EUR',
    reference: 'invoice-9',
    attributes: { channel: 'web' },
  };
}

async function problem(request: Promise<unknown>): Promise<{ status: number; code: string; pointer?: string }> {
  try {
    await request;
  } catch (error) {
    if (error instanceof ResponseError) return await error.response.json();
    throw error;
  }
  throw new Error('the request was accepted');
}

const configuration = new Configuration({ basePath: process.env.MILLRACE_URL });
const records = new RecordsApi(configuration);
const sums = new SumsApi(configuration);

const processed = await records.sendRecord({ recordInput: record(0, LARGEST), prefer: 'wait=30' });
assert.equal(processed.status, 'processed');
const again = await records.sendRecord({ recordInput: record(0, LARGEST), prefer: 'wait=30' });
assert.ok(again.duplicate);
assert.equal(again.seq, processed.seq);

const values = [...Array<string>(11).fill(LARGEST), REST];
const report = await records.sendRecords({ recordInput: values.map((value, index) => record(index + 1, value)) });
assert.deepEqual([report.accepted, report.rejected], [12, 0]);
const last = await records.sendRecord({ recordInput: record(12, REST), prefer: 'wait=30' });
assert.ok(last.duplicate);

const ids: string[] = [];
let cursor: string | undefined;
do {
  const page = await records.listRecords({ destinationId: 'typescript', limit: 5, cursor });
  ids.push(...page.items.map((item) => item.recordId));
  cursor = page.nextCursor;
} while (cursor);
assert.deepEqual(ids.sort(), values.map((_, index) => `typescript-${index + 1}`).concat('typescript-0').sort());

const { groups } = await sums.aggregateRecords({ destinationId: 'typescript' });
assert.equal(groups.length, 1);
assert.deepEqual(groups[0].totals.map(({ unit, count, total }) => [unit, count, total]), [['EUR', 13, TOTAL]]);

const history = await records.getRecord({ recordId: 'typescript-12' });
assert.equal(history.record?.value, REST);
assert.deepEqual(history.record?.attributes, { channel: 'web' });

const refused = await problem(records.sendRecord({ recordInput: record(13, '1.0000000001') }));
assert.deepEqual([refused.status, refused.code, refused.pointer], [422, 'invalid_value', '/value']);
const missing = await problem(records.getRecord({ recordId: 'typescript-none' }));
assert.deepEqual([missing.status, missing.code], [404, 'not_found']);
console.log('typescript:', TOTAL, 'read exactly from', new URL(configuration.basePath).host);
