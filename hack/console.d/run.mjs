// Runs the scenarios, one after another, and prints a line each.

import { createRequire } from 'node:module';
import path from 'node:path';

import { busy, broken, empty } from './pipelines.mjs';
import { Person } from './person.mjs';
import { scenarios } from './scenarios.mjs';

const [folder, millrace, root, ...wanted] = process.argv.slice(2);
const require = createRequire(path.join(folder, 'package.json'));
const { chromium } = require('playwright-core');
const { AxeBuilder } = require('@axe-core/playwright');

const began = Date.now();
const pipelines = {};
const names = { empty, busy, broken };
const chosen = scenarios.filter(({ name }) => wanted.length === 0 || wanted.some((word) => name.includes(word)));
for (const name of new Set(chosen.map((one) => one.on))) pipelines[name] = await names[name](millrace);
const browser = await chromium.launch({ executablePath: process.env.CHROMIUM, args: ['--no-sandbox', '--disable-dev-shm-usage'] });
console.log(`pipelines and browser after ${((Date.now() - began) / 1000).toFixed(1)} s`);

let failed = 0;
for (const { name, on, run, options } of chosen) {
  const pipeline = pipelines[on];
  const person = await Person.of({ browser, AxeBuilder, pipeline, root, options });
  const start = Date.now();
  try {
    await run(person, pipeline);
    await person.check();
    console.log(`ok      ${name} (${((Date.now() - start) / 1000).toFixed(1)} s)`);
  } catch (error) {
    failed += 1;
    console.log(`FAILED  ${name}: ${error.stack}\n${await person.screen()}`);
  } finally {
    await person.leave();
  }
}
await browser.close();
for (const pipeline of Object.values(pipelines)) {
  clearInterval(pipeline.load);
  await pipeline.close();
}
console.log(`${chosen.length - failed} of ${chosen.length} scenarios passed, in ${((Date.now() - began) / 1000).toFixed(1)} s`);
process.exit(failed === 0 ? 0 : 1);
