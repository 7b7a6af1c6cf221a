// Runs the scenarios, one after another, and prints a line each.

import { createRequire } from 'node:module';
import path from 'node:path';

import { Person } from './person.mjs';
import { busy, broken, dev, empty } from './pipelines.mjs';
import { scenarios } from './scenarios.mjs';

const [folder, millrace, root, ...wanted] = process.argv.slice(2);
const require = createRequire(path.join(folder, 'package.json'));
const { chromium } = require('playwright-core');
const { AxeBuilder } = require('@axe-core/playwright');

const began = Date.now();
const seconds = (since) => `${((Date.now() - since) / 1000).toFixed(1)} s`;
const makers = { dev, empty, busy, broken };
const chosen = scenarios.filter(({ name }) => wanted.length === 0 || wanted.some((word) => name.includes(word)));
const pipelines = {};

async function passes(browser, { name, on, run, options }) {
  const person = await Person.of({ browser, AxeBuilder, pipeline: pipelines[on], root, options });
  const start = Date.now();
  try {
    await run(person, pipelines[on]);
    await person.check();
    console.log(`ok      ${name} (${seconds(start)})`);
    return true;
  } catch (error) {
    console.log(`FAILED  ${name}: ${error.stack}\n${await person.screen()}`);
    return false;
  } finally {
    await person.leave();
  }
}

async function main() {
  for (const name of new Set(chosen.map((one) => one.on))) pipelines[name] = await makers[name](millrace);
  const browser = await chromium.launch({ executablePath: process.env.CHROMIUM, args: ['--no-sandbox', '--disable-dev-shm-usage'] });
  console.log(`pipelines and browser after ${seconds(began)}`);
  let passed = 0;
  for (const one of chosen) passed += await passes(browser, one);
  await browser.close();
  console.log(`${passed} of ${chosen.length} scenarios passed, in ${seconds(began)}`);
  return chosen.length > 0 && passed === chosen.length;
}

let right = false;
try {
  right = await main();
} finally {
  for (const pipeline of Object.values(pipelines)) {
    clearInterval(pipeline.load);
    await pipeline.close();
  }
}
process.exit(right ? 0 : 1);
