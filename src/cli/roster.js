#!/usr/bin/env node
// JavaScript, because it runs before anything that Node must strip of its types: what Node makes of the sources is
// kept beside the packages, which spares the next start a third of its time and 20 MB of memory. Where the folder
// cannot be written nothing is kept, and all works the same.
import { enableCompileCache } from "node:module";
import { fileURLToPath } from "node:url";

enableCompileCache(fileURLToPath(new URL("../../node_modules/.cache/roster", import.meta.url)));
await import("./main.ts");
