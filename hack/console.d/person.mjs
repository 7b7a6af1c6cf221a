// A person before the console: goes to pages, reads, clicks; and what is checked after each scenario.

import assert from 'node:assert/strict';
import path from 'node:path';

import { KEY } from './pipelines.mjs';

export const PAGES = ['overview', 'record', 'records', 'totals', 'rollups', 'alerts', 'dead-letters', 'conflicts', 'sinks', 'workers', 'policies', 'keys', 'audit'];

export class Person {
  static async of({ browser, AxeBuilder, pipeline, root, options = {} }) {
    const context = await browser.newContext({ viewport: { width: 1280, height: 800 }, reducedMotion: 'reduce', ...options });
    const page = await context.newPage();
    const person = Object.assign(new Person(), { context, page, pipeline, AxeBuilder, root, troubles: [], transferred: 0 });
    page.setDefaultTimeout(10_000);
    page.on('request', (request) => {
      if (new URL(request.url()).origin !== pipeline.url) person.troubles.push(`a request left the site: ${request.url()}`);
    });
    page.on('pageerror', (error) => person.troubles.push(`an error in the page: ${error.stack}`));
    page.on('dialog', (dialog) => person.troubles.push(`a script ran: ${dialog.message()}`));
    page.on('console', (message) => {
      if (/Content.Security.Policy|violates/i.test(message.text())) person.troubles.push(message.text());
    });
    return person;
  }

  async visit(hash = '') {
    await this.page.goto(`${this.pipeline.url}/console/${hash}`);
  }

  async signIn(key = KEY) {
    await this.visit();
    await this.page.getByLabel('API key').fill(key);
    await this.page.getByRole('button', { name: 'Sign in' }).click();
    await this.page.getByRole('button', { name: 'Sign out' }).waitFor();
  }

  // Signs in without the form, for scenarios about something else.
  async arrive(key = KEY) {
    this.pipeline.cookies ??= new Map();
    if (!this.pipeline.cookies.has(key)) {
      await this.signIn(key);
      this.pipeline.cookies.set(key, await this.context.cookies());
    } else {
      await this.context.addCookies(this.pipeline.cookies.get(key));
      await this.visit();
    }
  }

  // Goes to a page and waits until it is whole.
  async go(name, query = '') {
    await this.page.evaluate((hash) => { window.location.hash = hash; }, `#/${name}${query}`);
    await this.whole(name);
  }

  async whole(name) {
    await this.page.locator(`.page[data-page="${name}"]:not([aria-busy])`).waitFor();
    await this.page.locator('main [aria-busy]').waitFor({ state: 'detached' });
  }

  async sees(text) {
    await this.page.getByText(text).locator('visible=true').first().waitFor();
  }

  async click(name, role = 'button') {
    await this.page.getByRole(role, { name, exact: typeof name === 'string' }).first().click();
  }

  // No violations of accessibility.
  async isAccessible(what) {
    const { violations } = await new this.AxeBuilder({ page: this.page }).analyze();
    const found = violations.map(({ id, nodes }) => `${id}: ${nodes.map(({ html }) => html).slice(0, 3).join(' | ')}`);
    assert.deepEqual(found, [], `${what}: accessibility`);
    await this.fits(what);
  }

  // Nothing is wider than the screen.
  async fits(what) {
    const wider = await this.page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
    assert.ok(wider <= 0, `${what}: ${wider} px wider than the screen`);
  }

  // What holds after every scenario.
  async check() {
    assert.deepEqual(this.troubles, []);
    const kept = await this.page.evaluate(() => JSON.stringify([{ ...localStorage }, { ...sessionStorage }, document.cookie]));
    assert.equal(kept, '[{},{},""]', 'the browser stores nothing that a script can read');
  }

  async screenshot(name, height = 800) {
    if (!process.env.SCREENSHOTS) return;
    await this.page.screenshot({ path: path.join(this.root, 'docs', 'console', `${name}.png`), clip: { x: 0, y: 0, width: this.page.viewportSize().width, height } });
  }

  async screen() {
    return this.page.locator('body').innerText({ timeout: 1000 }).catch(() => 'no page');
  }

  async leave() {
    await this.context.close();
  }
}
