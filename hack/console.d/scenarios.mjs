// What persons do with the console.

import assert from 'node:assert/strict';

import { PAGES } from './person.mjs';
import { pause, record, until } from './pipelines.mjs';

export const scenarios = [];
const scenario = (name, on, run, options) => scenarios.push({ name, on, run, options });
const MOST_MS = 500;
const MOST_BYTES = 300 * 1024;

const numberOf = (text) => Number(text.replaceAll(',', ''));
const tile = (person, name) => person.page.locator('dl div').filter({ has: person.page.locator('dt', { hasText: new RegExp(`^${name}$`) }) }).locator('dd');
const row = (person, text) => person.page.locator('tbody tr').filter({ hasText: text }).first();

// Signing in

scenario('a wrong key is refused with code and remedy', 'empty', async (person) => {
  await person.visit();
  await person.page.getByLabel('API key').fill(`mk_${'0'.repeat(64)}`);
  await person.page.keyboard.press('Enter');
  await person.sees('invalid_key');
  await person.sees('is not known, it expired, or it was revoked');
  await person.isAccessible('sign-in');
  assert.deepEqual(await person.context.cookies(), []);
});

scenario('a person signs in, loads the page again, and signs out', 'empty', async (person) => {
  await person.signIn();
  const [cookie] = await person.context.cookies();
  assert.equal([cookie.httpOnly, cookie.sameSite].join(), 'true,Strict');
  await person.page.reload();
  await person.sees('bootstrap (admin)');
  await person.click('Sign out');
  await person.page.getByLabel('API key').waitFor();
  assert.deepEqual(await person.context.cookies(), []);
  await person.page.reload();
  await person.page.getByLabel('API key').waitFor();
});

scenario('a key that is revoked ends the session on the next click', 'empty', async (person, pipeline) => {
  const { id, secret } = await pipeline.key({ name: 'short', scopes: ['read'] });
  await person.signIn(secret);
  await pipeline.ask('DELETE', `/keys/${id}`);
  await until('the end of the session', async () => {
    await person.page.evaluate((hash) => { window.location.hash = hash; }, `#/records?reference=${Math.random()}`);
    await pause(200);
    return person.page.getByText('The session has ended').isVisible();
  });
});

scenario('a key with the scope read shows and does not act', 'busy', async (person, pipeline) => {
  await person.arrive((await pipeline.key({ name: 'reader', scopes: ['read'] })).secret);
  await person.go('dead-letters');
  await person.sees('below_minimum_total');
  await person.sees('sign in with a key that has the scope admin');
  assert.equal(await person.page.getByRole('button', { name: /Discard|Replay/ }).count(), 0);
  await person.go('keys');
  await person.sees('Keys are for administrators');
});

scenario('a limited key sees its rows and is told what it may not see', 'busy', async (person, pipeline) => {
  const limit = { name: 'tenant', scopes: ['read'], destinationIds: [{ exact: 'account-big' }] };
  await person.arrive((await pipeline.key(limit)).secret);
  await person.sees('limited_key');
  await person.isAccessible('overview of a limited key');
  await person.go('records');
  await person.sees('big-1');
  assert.equal(await person.page.locator('tbody tr').count(), 2);
  await person.go('totals');
  assert.equal(await person.page.locator('tbody tr').count(), 1);
});

scenario('under millrace dev there is no sign-in', 'dev', async (person, pipeline) => {
  await person.visit();
  await person.sees('Development: no sign-in');
  await person.sees('No record came yet');
  assert.ok(await until('a record', async () => (await pipeline.ask('POST', '/records', record('r1', 'd'))).ok));
  await until('it is applied', async () => await tile(person, 'Applied').innerText() === '1');
  assert.deepEqual(await person.context.cookies(), []);
});

// Each page in each state

async function everyPage(person, each) {
  for (const name of PAGES) {
    await person.go(name);
    await each(name);
  }
}

scenario('each page of an empty pipeline says what to do', 'empty', async (person) => {
  await person.arrive();
  await everyPage(person, async (name) => {
    await person.isAccessible(name);
    const expected = { overview: 'No record came yet', keys: 'Create a key', workers: 'alive', policies: 'Versions, the newest first', audit: /No fact|keys\.bootstrap/ };
    if (expected[name]) await person.sees(expected[name]);
    else assert.ok(await person.page.locator('.empty').count() > 0, `${name} has an empty state`);
  });
});

scenario('each page of a busy pipeline is accessible in the light', 'busy', async (person) => {
  await person.arrive();
  await everyPage(person, async (name) => {
    await person.isAccessible(name);
    assert.equal(await person.page.locator('[role=alert]').count(), 0, `${name} has no problem`);
  });
}, { colorScheme: 'light' });

scenario('each page of a busy pipeline is accessible in the dark', 'busy', async (person) => {
  await person.arrive();
  await everyPage(person, (name) => person.isAccessible(name));
}, { colorScheme: 'dark' });

for (const width of [360, 1920]) {
  scenario(`each page of a busy pipeline is readable at ${width} pixels`, 'busy', async (person) => {
    await person.arrive();
    await everyPage(person, (name) => person.fits(name));
    if (width === 360) {
      await person.go('overview');
      await person.isAccessible('overview');
      await person.screenshot('narrow');
    }
  }, { viewport: { width, height: 800 } });
}

scenario('each page of a broken pipeline is accessible, and the overview names the troubles', 'broken', async (person) => {
  await person.arrive();
  await person.sees('2 shards have no live worker');
  await person.sees(/Sink notifications, shard \d: halted/);
  assert.equal(await tile(person, 'Backlog').innerText(), '2');
  await everyPage(person, (name) => person.isAccessible(name));
  await person.go('workers');
  await person.sees('gone');
  await person.sees('expired');
  await person.go('record', '?id=waits-1');
  await person.sees('Waits in the input stream');
});

scenario('without Postgres each page shows code, message and remedy', 'broken', async (person, pipeline) => {
  await person.arrive();
  pipeline.proxy.cut();
  try {
    await everyPage(person, async (name) => {
      if (name === 'record') await person.go('record', '?id=old-1');
      await person.page.locator('.problem strong', { hasText: /^postgres_unavailable$/ }).first().waitFor({ timeout: 30_000 });
      await person.sees('The same may succeed later');
      await person.isAccessible(name);
    });
    await person.go('records');
    await person.sees('postgres_unavailable');
  } finally {
    pipeline.proxy.heal();
  }
  await until('Postgres', async () => (await pipeline.ask('GET', '/records')).ok);
  await person.click('Try again');
  await person.sees('old-1');
});

// What each page is for

scenario('the overview follows what happens, by itself', 'busy', async (person) => {
  await person.arrive();
  await person.go('overview');
  const applied = async () => numberOf(await tile(person, 'Applied').innerText());
  const first = await applied();
  await until('more applied records', async () => await applied() > first);
  await until('a rate', async () => /applied [1-9]/.test(await person.page.locator('svg.plot').first().getAttribute('aria-label')));
  assert.equal(await tile(person, 'Lost').innerText(), '0');
  await person.sees('never: run millrace verify');
  await pause(process.env.SCREENSHOTS ? 15_000 : 0);
  await person.screenshot('overview');
});

scenario('uncertain losses are acknowledged with a note', 'empty', async (person, pipeline) => {
  await pipeline.sql('update shards set loss_uncertain_since = now() where shard = 0');
  await person.arrive();
  await person.sees('More records can be lost than are counted');
  await person.isAccessible('overview with a loss');
  await person.click('Acknowledge');
  await person.page.getByLabel('Note for the audit trail').fill('sent again by shop-1');
  await person.page.locator('dialog').getByRole('button', { name: 'Acknowledge' }).click();
  await until('the act', async () => (await pipeline.get('/stats')).lossUncertain === false);
  const acts = (await pipeline.get('/audit?action=ADMIN')).items.map(({ reason }) => reason);
  assert.ok(acts.some((reason) => reason.includes('sent again by shop-1')), acts.join());
});

scenario('the history of a record shows every stage', 'busy', async (person) => {
  await person.arrive();
  await person.go('record');
  await person.page.getByLabel('Record id').fill('twice-1');
  await person.page.keyboard.press('Enter');
  for (const text of ['twice-1: processed', 'Accepted', 'Applied', 'Sent again', '1 times with the same content']) await person.sees(text);
  await until('it is published', async () => (await person.page.locator('.stages').innerText()).includes('notifications : published')
    || (await person.page.locator('.stages').innerText()).includes('notifications: published'));
  await person.go('record', '?id=alert-1');
  await person.sees('above the threshold 1000');
  await person.screenshot('record', 600);
  await person.go('record', '?id=minus-1');
  await person.sees('below_minimum_total');
  await person.go('record', '?id=none');
  await person.sees('there is no record of this id');
});

scenario('records are found by filters, and their amounts are the texts of the API', 'busy', async (person) => {
  await person.arrive();
  await person.go('records');
  await person.page.getByLabel('Destination').fill('account-big');
  await person.click('Show');
  await person.sees('999999999999999.123456789 EUR');
  assert.equal(await person.page.locator('tbody tr').count(), 2);
  await person.go('records', '?destinationId=account-0');
  const before = await person.page.locator('tbody tr').count();
  await person.click('More');
  await until('more rows', async () => await person.page.locator('tbody tr').count() > before);
  await person.go('records', '?startTime=yesterday');
  await person.sees('invalid_parameter');
});

scenario('text of a client is never a part of the page', 'busy', async (person) => {
  await person.arrive();
  await person.go('record', '?id=hostile-1');
  await person.sees('<script>alert(1)</script>');
  await person.click('<img src=x onerror=alert(1)>', 'link');
  await person.sees('<img src=x onerror=alert(1)>');
});

scenario('totals are exact, and a destination has its course', 'busy', async (person) => {
  await person.arrive();
  await person.go('totals');
  await row(person, 'account-big').getByRole('link').click();
  await person.sees('1999999999999998.246913578 EUR');
  await person.go('totals', '?destinationId=account-1&window=1d');
  const label = await person.page.locator('svg.plot').getAttribute('aria-label');
  assert.match(label, /account-1: EUR/);
  assert.equal(await row(person, '2026-01-30').locator('td').last().innerText(), '10.50 EUR');
});

scenario('rollups are plots with exact sums beside them', 'busy', async (person) => {
  await person.arrive();
  await person.go('rollups');
  await person.page.getByLabel('Group by').selectOption('destinationId');
  await person.page.getByLabel('From (UTC)').fill('2026-01-01T00:00:00Z');
  await person.page.getByLabel('Window', { exact: true }).selectOption('1d');
  await person.click('Show');
  await person.whole('rollups');
  await person.sees('Sums of each window, exact');
  assert.equal(await row(person, '2026-01-30').locator('td').last().innerText(), '10.50 EUR');
  assert.ok(await person.page.locator('svg.plot polyline').count() > 1);
});

scenario('alerts are the records above the threshold', 'busy', async (person) => {
  await person.arrive();
  await person.go('alerts');
  for (const id of ['alert-1', 'big-1', 'big-2']) await person.sees(id);
  assert.equal(await person.page.getByRole('link', { name: 'day-1', exact: true }).count(), 0);
});

scenario('a dead letter is discarded only after a confirmation', 'busy', async (person, pipeline) => {
  await person.arrive();
  await person.go('dead-letters', '?recordId=minus-3');
  await person.page.getByText('Show', { exact: false }).locator('visible=true').last().click();
  await person.click(/^Discard/);
  await person.isAccessible('the question');
  await person.click('Cancel');
  await person.page.locator('dialog').waitFor({ state: 'detached' });
  const states = async () => (await pipeline.get('/dead-letters?recordId=minus-3')).items.map(({ state }) => state);
  assert.deepEqual(await states(), ['open']);
  await person.click(/^Discard/);
  await person.page.locator('dialog').getByRole('button', { name: 'Discard' }).click();
  await person.sees('discarded');
  assert.deepEqual(await states(), ['discarded']);
});

scenario('dead letters are replayed by filter, after a dry run', 'busy', async (person, pipeline) => {
  await person.arrive();
  await person.go('dead-letters', '?recordId=minus-1');
  await pipeline.send(record('plus-1', 'account-minus', '5.00'));
  await person.click(/^Replay all/);
  await person.sees('1 open dead letters match');
  assert.equal((await pipeline.get('/dead-letters?recordId=minus-1')).items[0].state, 'open', 'a dry run changes nothing');
  await person.page.locator('dialog').getByRole('button', { name: 'Replay' }).click();
  await person.sees('1 dead letters are replayed');
  await until('the replay', async () => (await pipeline.get('/records/minus-1')).status === 'processed');
});

scenario('a conflict shows both contents side by side', 'busy', async (person) => {
  await person.arrive();
  await person.go('conflicts', '?recordId=clash-1');
  const cells = await row(person, 'value').locator('td').allInnerTexts();
  assert.deepEqual(cells, ['7.00', '12345678901234.123456789', 'written otherwise']);
  assert.equal((await row(person, 'reference').locator('td').allInnerTexts())[2], 'same');
});

scenario('a refused delivery is sent again and leaves the list', 'busy', async (person, pipeline) => {
  await person.arrive();
  await person.go('sinks');
  await person.sees('notifications');
  await row(person, 'refused-1').getByText(/attempts of/).click();
  await person.sees('500');
  pipeline.receiver.refused.clear();
  await person.click(/^Send billing\./);
  await person.sees('requested');
  await until('the delivery', async () => (await pipeline.get('/deliveries')).items.length === 0);
  await person.go('sinks', '?state=waiting');
  await person.sees('No delivery waits or failed');
});

scenario('a halted sink is resumed', 'broken', async (person, pipeline) => {
  await person.arrive();
  await person.go('sinks');
  await person.click('Resume notifications');
  await person.page.getByLabel('Start', { exact: true }).selectOption('beginning');
  await person.page.locator('dialog').getByRole('button', { name: 'Resume' }).click();
  await person.sees('sink_not_resumable');
  await person.click('Resume notifications');
  await person.page.getByLabel('Start', { exact: true }).selectOption('now');
  await person.page.locator('dialog').getByRole('button', { name: 'Resume' }).click();
  await person.sees('resumed: the workers read it within seconds');
  const acts = (await pipeline.get('/audit?action=ADMIN')).items.map(({ reason }) => reason);
  assert.ok(acts.some((reason) => reason.startsWith('sinks.resume')), acts.join());
});

scenario('policy versions show what changed', 'busy', async (person) => {
  await person.arrive();
  await person.go('policies');
  await person.sees('From version 1 to 2');
  const cells = await row(person, 'threshold').locator('td').allInnerTexts();
  assert.deepEqual(cells, ['threshold', 'changed', '1000', '900']);
});

scenario('a key is created, shown once, and revoked; the trail has it', 'empty', async (person, pipeline) => {
  await person.arrive();
  await person.go('keys');
  await person.click('Create a key');
  await person.page.getByLabel('Name').fill('new shop');
  await person.page.getByLabel('Only this destination').fill('account-7');
  await person.page.locator('dialog').getByRole('button', { name: 'Create' }).click();
  await person.sees('It is shown only now');
  const secret = await person.page.locator('[role=alert] pre').innerText();
  await until('the key', async () => (await pipeline.ask('GET', '/records', undefined, secret)).status === 200);
  await person.click('Done');
  await person.whole('keys');
  assert.ok(!(await person.page.content()).includes(secret), 'the secret is gone');
  await person.click(/^Revoke new shop/);
  await person.page.locator('dialog').getByRole('button', { name: 'Revoke' }).click();
  await person.sees('revoked');
  await until('the revocation', async () => (await pipeline.ask('GET', '/records', undefined, secret)).status === 401);
  await person.go('audit', '?action=ADMIN');
  await person.sees(/keys\.create/);
  await person.sees(/keys\.revoke/);
});

scenario('the keyboard alone reaches the content, a page, and a question', 'busy', async (person, pipeline) => {
  await person.arrive();
  const { keyboard } = person.page;
  const focused = () => person.page.evaluate(() => (document.activeElement === document.body ? '' : document.activeElement.innerText));
  const tabTo = async (text) => {
    for (let n = 0; n < 80; n += 1) {
      if ((await focused()).startsWith(text)) return;
      await keyboard.press('Tab');
    }
    assert.fail(`Tab does not reach ${text}`);
  };
  await tabTo('Skip to the content');
  await keyboard.press('Enter');
  assert.equal(await person.page.evaluate(() => document.activeElement.id), 'main');
  await person.visit('#/overview');
  await tabTo('Dead letters');
  await keyboard.press('Enter');
  await person.whole('dead-letters');
  assert.equal(await focused(), 'Dead letters', 'the heading has the focus');
  const before = (await pipeline.get('/dead-letters?state=open')).items.length;
  await tabTo('Discard');
  await keyboard.press('Enter');
  assert.equal(await focused(), 'Cancel', 'the question begins at the harmless answer');
  await keyboard.press('Escape');
  await person.page.locator('dialog').waitFor({ state: 'detached' });
  assert.equal(await focused(), 'Discard', 'the focus is back');
  assert.equal((await pipeline.get('/dead-letters?state=open')).items.length, before);
});

scenario('ten loads of a busy pipeline: median and size', 'busy', async (person) => {
  await person.arrive();
  const client = await person.context.newCDPSession(person.page);
  await client.send('Network.enable');
  let bytes = 0;
  client.on('Network.dataReceived', ({ encodedDataLength, dataLength }) => { bytes += encodedDataLength || dataLength; });
  client.on('Network.responseReceived', ({ response }) => { bytes += response.headersText?.length ?? 400; });
  for (const name of ['overview', 'records', 'totals']) {
    const times = [];
    let most = 0;
    for (let n = 0; n < 10; n += 1) {
      await client.send('Network.clearBrowserCache');
      await person.page.goto('about:blank');
      bytes = 0;
      const began = performance.now();
      await person.visit(`#/${name}`);
      await person.whole(name);
      times.push(performance.now() - began);
      most = Math.max(most, bytes);
    }
    times.sort((a, b) => a - b);
    const median = (times[4] + times[5]) / 2;
    console.log(`        ${name}: median ${median.toFixed(0)} ms of ten loads (most ${times[9].toFixed(0)} ms), ${(most / 1024).toFixed(0)} KiB`);
    assert.ok(median <= MOST_MS, `${name}: ${median} ms`);
    assert.ok(most > 20_000 && most <= MOST_BYTES, `${name}: ${most} bytes`);
  }
});
