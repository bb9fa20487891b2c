// Runs inside Azurite, before it: its accounts are those of the last line on standard input, {"name": ["key1", "key2"]}.
// Its own store reads a variable at its start and keeps what it has read (AccountDataStore of azurite 3.35).
"use strict";
const path = require("path");
const store = require(path.join(path.dirname(process.argv[1]), "..", "common", "AccountDataStore")).default;
let accounts = {};
store.prototype.getAccount = function (name) {
  return Object.prototype.hasOwnProperty.call(accounts, name) ? accounts[name] : undefined;
};
// Every request would be a line that nobody reads.
const say = console.log.bind(console);
console.log = (...words) => { if (String(words[0]).startsWith("Azurite Blob service")) say(...words); };
require("readline").createInterface({ input: process.stdin }).on("line", (line) => {
  const known = JSON.parse(line);
  accounts = {};
  for (const name of Object.keys(known)) {
    const [key1, key2] = known[name].map((key) => Buffer.from(key, "base64"));
    accounts[name] = { name, key1, key2 };
  }
  say("accounts are " + Object.keys(known).length);
}).on("close", () => process.exit(0));
