// Makes a component of a script: `node build.mjs SOURCE WIT WORLD OUT`.
import { componentize } from '@bytecodealliance/componentize-js';
import { readFile, writeFile } from 'node:fs/promises';
const [source, wit, world, out] = process.argv.slice(2);
const { component } = await componentize(await readFile(source, 'utf8'), { witPath: wit, worldName: world, disableFeatures: ['fetch-event'] });
await writeFile(out, component);
